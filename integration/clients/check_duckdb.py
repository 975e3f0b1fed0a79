"""All features of all flights: Springhouse's training set against DuckDB's own SQL, ASOF joins over window functions."""

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


springhouse("apply", "-m", "check")
springhouse("refresh")
spine = "SELECT flight_id, origin, dest, carrier, tailnum, distance, scheduled_at FROM flights"
ours = f"{folder}/ours.parquet"
springhouse("training-set", "arrival_delay", "--spine", spine, "--time", "scheduled_at", "--with-features", "--out", ours)

db = duckdb.connect()
db.execute("SET TimeZone = 'UTC'")
for table in ("flights", "weather", "planes"):
    db.execute(f"CREATE VIEW {table} AS SELECT * FROM '{folder}/data/{table}.parquet'")


def window(key, time, span):
    return f"(PARTITION BY {key} ORDER BY {time} RANGE BETWEEN INTERVAL '{span}' PRECEDING AND CURRENT ROW)"


# For each view: its rows, its keys, its time, its TTL and its features, in DuckDB's SQL.
VIEWS = {
    "airport_departures": (f"""SELECT origin, departed_at AS t,
        avg(dep_delay::DOUBLE) OVER {window('origin', 'departed_at', '2 hours')} AS mean_delay_2h,
        count(*) OVER {window('origin', 'departed_at', '2 hours')} AS departures_2h,
        avg(dep_delay::DOUBLE) OVER {window('origin', 'departed_at', '24 hours')} AS mean_delay_24h,
        count(*) OVER {window('origin', 'departed_at', '24 hours')} AS departures_24h
        FROM flights WHERE departed_at IS NOT NULL""", ["origin"], "30 days",
        ["mean_delay_2h", "departures_2h", "mean_delay_24h", "departures_24h"]),
    "carrier_landings": (f"""SELECT carrier, landed_at AS t,
        avg(arr_delay::DOUBLE) OVER {window('carrier', 'landed_at', '6 hours')} AS mean_delay_6h,
        avg(arr_delay::DOUBLE) OVER {window('carrier', 'landed_at', '7 days')} AS mean_delay_7d,
        count(*) OVER {window('carrier', 'landed_at', '7 days')} AS landings_7d
        FROM flights WHERE landed_at IS NOT NULL""", ["carrier"], "30 days",
        ["mean_delay_6h", "mean_delay_7d", "landings_7d"]),
    "route_landings": (f"""SELECT origin, dest, landed_at AS t,
        avg(arr_delay::DOUBLE) OVER {window('origin, dest', 'landed_at', '1 day')} AS mean_delay_1d,
        avg(arr_delay::DOUBLE) OVER {window('origin, dest', 'landed_at', '14 days')} AS mean_delay_14d,
        count(*) OVER {window('origin, dest', 'landed_at', '14 days')} AS landings_14d
        FROM flights WHERE landed_at IS NOT NULL""", ["origin", "dest"], "60 days",
        ["mean_delay_1d", "mean_delay_14d", "landings_14d"]),
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
for feature in ("year", "seats", "engines"):
    wrong = db.execute(f"""SELECT count(*) FROM '{ours}' o LEFT JOIN planes p USING (tailnum)
        WHERE o."plane_facts.{feature}" IS DISTINCT FROM p.{feature}""").fetchone()[0]
    assert wrong == 0, (feature, wrong)
    compared += rows
print(f"duckdb: {compared} values equal")
