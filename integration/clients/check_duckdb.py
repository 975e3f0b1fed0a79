"""All features of all flights: Springhouse's training set against DuckDB's own SQL: ASOF joins, and differences
of running sums for windows, which must agree to the last bit."""

import shutil
import subprocess
import sys

import duckdb

binary, example, folder = sys.argv[1:]
shutil.copytree(example, folder, dirs_exist_ok=True)


def springhouse(*arguments):
    done = subprocess.run([binary, "--project", folder, "--clock", "2014-01-03T00:00:00Z", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Lists, which the example does not need.
with open(f"{folder}/history.sql", "w") as definitions:
    definitions.write("""
CREATE FEATURE VIEW plane_history ENTITY plane WINDOWS ('1 day', '7 days') STEP '1 hour' REFRESH EVERY '1 hour'
  AS SELECT tailnum, array_agg(arr_delay LIMIT 5) AS recent, array_agg(arr_delay IGNORE NULLS LIMIT 3) AS known,
            approx_top_k(dest, 2) AS usual FROM landings GROUP BY tailnum;
CREATE CONTRACT history TIER batch REQUEST (tailnum VARCHAR)
  FEATURES (plane_history FRESH WITHIN '1 hour' ON STALE SERVE ON MISSING DEFAULT)
  INPUTS (coalesce(array_length(plane_history.recent_1d), 0) AS landings) OUTPUT (late FLOAT);""")

springhouse("apply", "-m", "check")
springhouse("refresh")
spine = "SELECT flight_id, origin, dest, carrier, tailnum, distance, scheduled_at FROM flights"
ours = f"{folder}/ours.parquet"
springhouse("training-set", "arrival_delay", "--spine", spine, "--time", "scheduled_at", "--with-features", "--out", ours)

lists = f"{folder}/lists.parquet"
springhouse("training-set", "history", "--spine", spine, "--time", "scheduled_at", "--with-features", "--out", lists)

db = duckdb.connect()
db.execute("SET TimeZone = 'UTC'")
for table in ("flights", "weather", "planes"):
    db.execute(f"CREATE VIEW {table} AS SELECT * FROM '{folder}/data/{table}.parquet'")


HOUR = 3_600_000_000

# For each windowed view: its keys, event time, value, what it calls counts, its step, its windows with their steps, its TTL.
WINDOWED = {
    "airport_departures": (["origin"], "departed_at", "dep_delay", "departures",
        {"2h": (2 * HOUR, HOUR // 12), "24h": (24 * HOUR, HOUR // 12)}, 30 * 24 * HOUR),
    "carrier_landings": (["carrier"], "landed_at", "arr_delay", "landings",
        {"6h": (6 * HOUR, HOUR // 4), "7d": (7 * 24 * HOUR, HOUR)}, 30 * 24 * HOUR),
    "route_landings": (["origin", "dest"], "landed_at", "arr_delay", "landings",
        {"1d": (24 * HOUR, HOUR), "14d": (14 * 24 * HOUR, HOUR)}, 60 * 24 * HOUR),
}

# For each view of rows: its rows, its keys, its time, its TTL and its features, in DuckDB's SQL.
VIEWS = {
    "plane_landings": ("""SELECT tailnum, landed_at AS t, max(arr_delay) AS last_delay FROM flights
        WHERE landed_at IS NOT NULL AND tailnum IS NOT NULL GROUP BY ALL""", ["tailnum"], None, ["last_delay"]),
    "airport_weather": ("SELECT origin, observed_at AS t, temp, wind_speed, precip, visib FROM weather",
        ["origin"], None, ["temp", "wind_speed", "precip", "visib"]),
}

rows = db.execute(f"SELECT count(*) FROM '{ours}'").fetchone()[0]
assert rows == 336_776, rows
compared = 0
for view, (sql, keys, ttl, features) in VIEWS.items():
    same = " AND ".join(f"f.{key} = v.{key}" for key in keys)
    alive = f"v.t IS NOT NULL AND f.scheduled_at - v.t <= INTERVAL '{ttl}'" if ttl else "v.t IS NOT NULL"
    values = ", ".join(f"CASE WHEN {alive} THEN v.{feature} END AS {feature}" for feature in features)
    # Rows with equal key and time carry equal values (RANGE frames), so one of them stands for all.
    db.execute(f"""CREATE OR REPLACE TABLE theirs AS
        SELECT f.flight_id, {values} FROM flights f ASOF LEFT JOIN (SELECT DISTINCT * FROM ({sql})) v
        ON {same} AND f.scheduled_at >= v.t""")
    for feature in features:
        name = f'"{view}.{feature}"'
        nulls_ours, nulls_theirs, wrong = db.execute(f"""SELECT
            count(*) FILTER (o.{name} IS NULL), count(*) FILTER (t.{feature} IS NULL),
            count(*) FILTER ((o.{name} IS NULL) <> (t.{feature} IS NULL)
                OR abs(o.{name} - t.{feature}) > 1e-6 * greatest(abs(t.{feature}), 1e-6))
            FROM '{ours}' o JOIN theirs t USING (flight_id)""").fetchone()
        assert nulls_ours == nulls_theirs and wrong == 0, (name, nulls_ours, nulls_theirs, wrong)
        compared += rows
# A window is the difference of two running sums: at the flight's time, and where the window begins.
for view, (keys, time, value, counts, windows, ttl) in WINDOWED.items():
    listed = ", ".join(keys)
    db.execute(f"""CREATE OR REPLACE TABLE running AS
        SELECT {listed}, t, sum(s) OVER w AS s, sum(n) OVER w AS n, sum(c) OVER w AS c
        FROM (SELECT {listed}, epoch_us({time}) AS t, coalesce(sum({value}), 0) AS s, count({value}) AS n, count(*) AS c
              FROM flights WHERE {time} IS NOT NULL GROUP BY ALL)
        WINDOW w AS (PARTITION BY {listed} ORDER BY t ROWS UNBOUNDED PRECEDING)""")
    for suffix, (length, step) in windows.items():
        same = {side: " AND ".join(f"f.{key} = {side}.{key}" for key in keys) for side in ("head", "tail")}
        wrong, nulls = db.execute(f"""WITH spine AS (
                SELECT flight_id, {listed}, epoch_us(scheduled_at) AS t,
                       (epoch_us(scheduled_at) - {length}) // {step} * {step} AS begin FROM flights),
            theirs AS (
                SELECT f.flight_id,
                       head.t IS NOT NULL AND f.t - head.t <= {ttl} AS alive,
                       head.c - coalesce(tail.c, 0) AS c, head.n - coalesce(tail.n, 0) AS n, head.s - coalesce(tail.s, 0) AS s
                FROM spine f
                ASOF LEFT JOIN running head ON {same["head"]} AND f.t >= head.t
                ASOF LEFT JOIN running tail ON {same["tail"]} AND f.begin >= tail.t)
            SELECT count(*) FILTER (
                       o."{view}.{counts}_{suffix}" IS DISTINCT FROM CASE WHEN alive THEN c END
                       OR o."{view}.mean_delay_{suffix}" IS DISTINCT FROM CASE WHEN alive AND n > 0 THEN s::DOUBLE / n END),
                   count(*) FILTER (o."{view}.mean_delay_{suffix}" IS NULL)
            FROM '{ours}' o JOIN theirs USING (flight_id)""").fetchone()
        assert wrong == 0 and 0 < nulls < rows, (view, suffix, wrong, nulls)
        compared += 2 * rows
for feature in ("year", "seats", "engines"):
    wrong = db.execute(f"""SELECT count(*) FROM '{ours}' o LEFT JOIN planes p USING (tailnum)
        WHERE o."plane_facts.{feature}" IS DISTINCT FROM p.{feature}""").fetchone()[0]
    assert wrong == 0, (feature, wrong)
    compared += rows
# Lists: the events of a window in order of time, and the destinations by how often they occur.
for suffix, length in {"1d": 24 * HOUR, "7d": 7 * 24 * HOUR}.items():
    wrong, nulls = db.execute(f"""WITH spine AS (
            SELECT flight_id, tailnum, epoch_us(scheduled_at) AS t, (epoch_us(scheduled_at) - {length}) // {HOUR} * {HOUR} AS begin
            FROM flights),
        events AS (SELECT tailnum, epoch_us(landed_at) AS t, arr_delay, dest FROM flights WHERE landed_at IS NOT NULL),
        seen AS (SELECT flight_id, e.t, arr_delay, dest FROM spine s JOIN events e USING (tailnum) WHERE e.t > s.begin AND e.t <= s.t),
        known AS (SELECT flight_id, list(arr_delay ORDER BY t, arr_delay NULLS FIRST)[-5:] AS recent,
                         (list(arr_delay ORDER BY t, arr_delay) FILTER (arr_delay IS NOT NULL))[-3:] AS known
                  FROM seen GROUP BY ALL),
        counted AS (SELECT flight_id, dest, count(*) AS c FROM seen GROUP BY ALL),
        usual AS (SELECT flight_id, list(dest ORDER BY c DESC, dest)[:2] AS usual FROM counted GROUP BY ALL),
        theirs AS (SELECT * FROM spine LEFT JOIN known USING (flight_id) LEFT JOIN usual USING (flight_id))
        SELECT count(*) FILTER (o."plane_history.recent_{suffix}" IS DISTINCT FROM recent
                   OR o."plane_history.known_{suffix}" IS DISTINCT FROM known OR o."plane_history.usual_{suffix}" IS DISTINCT FROM usual),
               count(*) FILTER (recent IS NULL)
        FROM '{lists}' o JOIN theirs USING (flight_id)""").fetchone()
    assert wrong == 0 and 0 < nulls < rows, (suffix, wrong, nulls)
    compared += 3 * rows
print(f"duckdb: {compared} values equal")
