"""Scale: what the binary does with millions of events, against DuckDB, Polars and DataFusion's own GROUP BY.

Every side is a process of its own that does the whole job, from Parquet to Parquet, on two threads; its peak memory is what
the operating system reports. The sides of a ratio alternate. Prints Markdown.

    python scale.py BINARY [--millions 20] [--rounds 3] [refresh] [growth] [backfill] [windows] [latest]

The events of each side are the same files, and so are the numbers that come out: they are compared value by value.
"""

import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

NOW = "2024-07-01T00:00:00Z"
MINUTE = 60_000_000
WINDOWS = {"1h": 60 * MINUTE, "1d": 1440 * MINUTE, "30d": 43_200 * MINUTE}
STEP = 5 * MINUTE

DEFINITIONS = """
CREATE EXTERNAL TABLE events STORED AS PARQUET LOCATION 'events';
CREATE SOURCE payments EVENT TIME at AS SELECT user_id, at, amount FROM events;
CREATE ENTITY account KEY (user_id BIGINT);
CREATE FEATURE VIEW spent ENTITY account WINDOWS ('1 hour', '1 day', '30 days') STEP '5 minutes' REFRESH EVERY '1 hour'
  AS SELECT user_id, count(*) AS n, sum(amount) AS total, avg(amount) AS mean, min(amount) AS least, max(amount) AS most
     FROM payments GROUP BY user_id;
CREATE CONTRACT limits TIER batch REQUEST (user_id BIGINT NOT NULL)
  FEATURES (spent FRESH WITHIN '1 hour' ON STALE SERVE ON MISSING DEFAULT)
  INPUTS ({inputs})
  OUTPUT (limit FLOAT);
"""

LATEST = """
CREATE EXTERNAL TABLE events_{n} STORED AS PARQUET LOCATION 'events_{n}';
CREATE SOURCE seen_{n} EVENT TIME at AS SELECT user_id, at, amount FROM events_{n};
CREATE FEATURE VIEW last_{n} ENTITY account REFRESH EVERY '1 hour' AS SELECT user_id, at, amount FROM seen_{n};
"""


class Job:
    """A process: seconds, peak memory in MB, and what it printed."""

    def __init__(self, command, folder):
        start = time.perf_counter()
        with open(folder / "said.txt", "w+") as said:
            process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)
            self.seconds = time.perf_counter() - start
            said.seek(0)
            self.said = said.read()
        self.megabytes = usage.ru_maxrss / 1024
        if status != 0:
            raise SystemExit(f"failed: {' '.join(map(str, command))}\n{self.said}")


def python(folder, code):
    (folder / "side.py").write_text(code)
    return Job([sys.executable, "side.py"], folder)


def duckdb_job(folder, sql):
    return python(folder, f"import duckdb\nc = duckdb.connect()\nc.execute(\"SET threads = 2; SET TimeZone = 'UTC'\")\nc.execute('''{sql}''')\n")


def row(what, unit, work, pairs):
    """A row of the table, of the rounds' pairs of jobs."""
    ratios = sorted(peer.seconds / ours.seconds for ours, peer in pairs)
    rate = lambda jobs: work / statistics.median(job.seconds for job in jobs)
    ours, peers = zip(*pairs)
    memory = lambda jobs: max(job.megabytes for job in jobs)
    print(
        f"| {what} | {rate(ours):,.0f} {unit} | {rate(peers):,.0f} {unit} "
        f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) "
        f"| {memory(ours):,.0f} / {memory(peers):,.0f} MB |",
        flush=True,
    )


def events(folder, name, rows, keys, seed, until="2024-06-29"):
    """Events of half a year, spread over keys and time by a hash."""
    (folder / name).mkdir()
    days = f"date_diff('day', TIMESTAMP '2024-01-01', TIMESTAMP '{until}')"
    duckdb_job(
        folder,
        f"""COPY (SELECT (hash(i * 7 + {seed}) % {keys})::BIGINT AS user_id,
        (TIMESTAMP '2024-01-01' + to_microseconds((hash(i + {seed}) % ({days} * 86400 * 1000000)::UBIGINT)::BIGINT))::TIMESTAMPTZ AS "at",
        ((hash(i * 3 + {seed}) % 100000) / 100.0)::DOUBLE AS amount FROM range({rows}) t(i)) TO '{name}/part.parquet' (FORMAT parquet)""",
    )


def spine(folder, rows, keys):
    duckdb_job(
        folder,
        f"""COPY (SELECT (hash(i * 11 + 3) % {keys})::BIGINT AS user_id,
        (TIMESTAMP '2024-02-01' + to_microseconds((hash(i * 13 + 1) % (149::UBIGINT * 86400 * 1000000))::BIGINT))::TIMESTAMPTZ AS asked_at,
        i::BIGINT AS spine_row FROM range({rows}) t(i)) TO 'spine.parquet' (FORMAT parquet)""",
    )


def project(binary, folder, text):
    (folder / "definitions.sql").write_text(text)
    Job([binary, "--clock", NOW, "apply", "-m", "scale"], folder)


def refresh(binary, folder, clock=NOW):
    return Job([binary, "--clock", clock, "refresh", "--no-load"], folder)


def training_set(binary, folder):
    command = [binary, "--clock", NOW, "training-set", "limits", "--spine", "spine.parquet", "--time", "asked_at"]
    return Job(command + ["--out", "ours.parquet"], folder)


def same(folder, columns):
    """Both sides' answers have the same numbers: counts and picked values to the last bit, sums and means within 1e-9."""
    differs = " OR ".join(
        f"(o.{name} IS DISTINCT FROM p.{name} AND NOT coalesce(abs(o.{name} - p.{name}) <= 1e-9 * greatest(abs(p.{name}), 1), false))"
        for name in columns
    )
    python(
        folder,
        f"""import duckdb
rows, wrong = duckdb.connect().execute('''SELECT count(*), count(*) FILTER (WHERE {differs})
    FROM 'ours.parquet' o JOIN 'peer.parquet' p USING (spine_row)''').fetchone()
assert rows > 0 and wrong == 0, (rows, wrong)
""",
    )


def windows(binary, folder, millions, rounds):
    """Training set of windows: 5 aggregates x 3 windows."""
    rows, keys = millions * 1_000_000, millions * 5_000
    asked = rows // 20
    events(folder, "events", rows, keys, 1)
    spine(folder, asked, keys)
    features = [f"{name}_{window}" for name in ["n", "total", "mean", "least", "most"] for window in WINDOWS]
    project(binary, folder, DEFINITIONS.format(inputs=", ".join(f"spent.{name}" for name in features)))
    refresh(binary, folder)
    # In microseconds the frame of each row begins where its window does.
    calls = {"n": "count(amount)", "total": "sum(amount)", "mean": "avg(amount)", "least": "min(amount)", "most": "max(amount)"}
    columns = ", ".join(f"{call} OVER w{window} AS {name}_{window}" for window in WINDOWS for name, call in calls.items())
    frames = ", ".join(
        f"w{window} AS (PARTITION BY user_id ORDER BY t RANGE BETWEEN t - (t - {length}) // {STEP} * {STEP} - 1 PRECEDING AND CURRENT ROW)"
        for window, length in WINDOWS.items()
    )
    sql = f"""COPY (SELECT * FROM (SELECT user_id, spine_row, {columns} FROM
        (SELECT user_id, epoch_us("at") AS t, NULL::BIGINT AS spine_row, amount FROM 'events/*.parquet'
         UNION ALL SELECT user_id, epoch_us(asked_at), spine_row, NULL FROM 'spine.parquet') WINDOW {frames})
        WHERE spine_row IS NOT NULL) TO 'peer.parquet' (FORMAT parquet)"""
    pairs = [(training_set(binary, folder), duckdb_job(folder, sql)) for _ in range(rounds)]
    same(folder, features)
    row(
        f"training set of windows: {asked:,} rows, {millions} M events, 5 aggregates x 3 windows, peer: DuckDB's range frames",
        "rows/s",
        asked,
        pairs,
    )


def refreshes(binary, folder, millions, rounds):
    """Refresh of all events, two and a half times as many as the training sets have."""
    millions = millions * 5 // 2
    events(folder, "events", millions * 1_000_000, millions * 5_000, 1)
    project(binary, folder, DEFINITIONS.format(inputs="spent.n_1h"))
    pairs = [(refresh_anew(binary, folder), group_by(binary, folder)) for _ in range(rounds)]
    what = f"refresh of {millions} M events, peer: DataFusion's GROUP BY of keys and steps into Parquet"
    row(what, "events/s", millions * 1_000_000, pairs)


def refresh_anew(binary, folder):
    shutil.rmtree(folder / ".springhouse" / "store" / "views", ignore_errors=True)
    return refresh(binary, folder)


def backfill(binary, folder, millions, rounds):
    """Backfill of all events, which lie in no order of time, in ranges of ten days."""
    events(folder, "events", millions * 1_000_000, millions * 5_000, 1)
    project(binary, folder, DEFINITIONS.format(inputs="spent.n_1h"))
    ours = [binary, "--clock", NOW, "backfill", "spent", "--every", "10 days", "--no-load"]
    pairs = []
    for _ in range(rounds):
        shutil.rmtree(folder / ".springhouse" / "store" / "views", ignore_errors=True)
        pairs.append((Job(ours, folder), refresh_anew(binary, folder)))
    what = f"backfill of {millions} M events in no order of time, in 18 ranges of 10 days, peer: our own refresh of all"
    row(what, "events/s", millions * 1_000_000, pairs)


def group_by(binary, folder):
    (folder / "grouped.parquet").unlink(missing_ok=True)
    sql = """COPY (SELECT user_id, date_bin(INTERVAL '5 minutes', at) AS step, count(*) AS n, sum(amount) AS total,
        min(amount) AS least, max(amount) AS most FROM events GROUP BY 1, 2) TO 'grouped.parquet' STORED AS PARQUET"""
    return Job([f"{binary}-bench", "datafusion", "events", sql], folder)


def latest(binary, folder, millions, rounds):
    """Training set of latest rows: 4 views, a quarter of the events each."""
    views, rows, keys = 4, millions * 250_000, millions * 5_000
    asked = millions * 250_000
    for view in range(views):
        events(folder, f"events_{view}", rows, keys, 100 + view)
    spine(folder, asked, keys)
    text = "CREATE ENTITY account KEY (user_id BIGINT);" + "".join(LATEST.format(n=view) for view in range(views))
    rules = ", ".join(f"last_{view} FRESH WITHIN '1 hour' ON STALE SERVE ON MISSING DEFAULT" for view in range(views))
    inputs = ", ".join(f"last_{view}.amount AS amount_{view}" for view in range(views))
    project(
        binary,
        folder,
        f"{text} CREATE CONTRACT limits TIER batch REQUEST (user_id BIGINT NOT NULL) FEATURES ({rules}) INPUTS ({inputs}) OUTPUT (limit FLOAT);",
    )
    refresh(binary, folder)
    joins = " ".join(
        f"""ASOF LEFT JOIN 'events_{view}/*.parquet' e{view} ON s.user_id = e{view}.user_id AND s.asked_at >= e{view}."at" """
        for view in range(views)
    )
    columns = ", ".join(f"e{view}.amount AS amount_{view}" for view in range(views))
    sql = f"COPY (SELECT s.*, {columns} FROM 'spine.parquet' s {joins}) TO 'peer.parquet' (FORMAT parquet)"
    polars = f"""import os
os.environ["POLARS_MAX_THREADS"] = "2"
import polars as pl
s = pl.scan_parquet("spine.parquet").sort("asked_at")
for view in range({views}):
    e = pl.scan_parquet(f"events_{{view}}/*.parquet").rename({{"amount": f"amount_{{view}}"}}).sort("at")
    s = s.join_asof(e, left_on="asked_at", right_on="at", by="user_id", strategy="backward", check_sortedness=False).drop("at", strict=False)
s.collect().write_parquet("peer.parquet")
"""
    with_duckdb, with_polars = [], []
    for _ in range(rounds):
        ours = training_set(binary, folder)
        with_duckdb.append((ours, duckdb_job(folder, sql)))
        same(folder, [f"amount_{view}" for view in range(views)])
        with_polars.append((ours, python(folder, polars)))
        same(folder, [f"amount_{view}" for view in range(views)])
    what = f"training set of latest rows: {asked:,} rows, {views} views of {millions / 4:g} M events, peer:"
    row(f"{what} DuckDB's ASOF joins", "rows/s", asked, with_duckdb)
    row(f"{what} Polars' join_asof, all in memory", "rows/s", asked, with_polars)


def growth(binary, folder, millions, rounds):
    """Refresh of the same new events on histories of 1, 10 and 100 times their number."""
    new = millions * 10_000
    text = DEFINITIONS.format(inputs="spent.n_1h")
    seconds = {}
    for times in [1, 10, 100]:
        place = folder / str(times)
        place.mkdir()
        events(place, "events", new * times, millions * 50, 1, "2024-06-01")
        project(binary, place, text)
        refresh(binary, place, "2024-06-02T00:00:00Z")
        shutil.move(place / ".springhouse", place / "before")
        events(place, "more", new, millions * 50, 2)
        duckdb_job(
            place,
            """COPY (SELECT user_id, TIMESTAMPTZ '2024-06-03' + ("at" - TIMESTAMPTZ '2024-01-01') / 10 AS "at", amount
            FROM 'more/part.parquet') TO 'events/more.parquet' (FORMAT parquet)""",
        )
        measured = []
        for _ in range(rounds):
            shutil.rmtree(place / ".springhouse", ignore_errors=True)
            shutil.copytree(place / "before", place / ".springhouse")
            measured.append(refresh(binary, place))
        seconds[times] = statistics.median(job.seconds for job in measured)
    curve = ", ".join(f"{times}x: {spent:.2f} s" for times, spent in seconds.items())
    print(f"| refresh of {new:,} new events, by the history before them | {curve} | - | - | - |", flush=True)


def main():
    parts = {"refresh": refreshes, "growth": growth, "backfill": backfill, "windows": windows, "latest": latest}
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("binary", type=pathlib.Path)
    arguments.add_argument("parts", nargs="*", choices=[*parts, []], default=[])
    arguments.add_argument("--millions", type=int, default=20)
    arguments.add_argument("--rounds", type=int, default=3)
    given = arguments.parse_args()
    print("| measurement | ours | peer | times the peer's rate (median, spread) | peak memory, ours / peer |")
    print("|---|---|---|---|---|", flush=True)
    for part in given.parts or parts:
        with tempfile.TemporaryDirectory() as folder:
            parts[part](given.binary.resolve(), pathlib.Path(folder), given.millions, given.rounds)


main()
