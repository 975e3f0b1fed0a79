"""DuckDB's side of the training-set benchmark: ASOF joins of the same committed rows, written to Parquet;
windows as differences of running sums.

Prints the seconds that it took, without the start of Python and the import.
"""

import glob
import sys
import time

import duckdb

example, folder = sys.argv[1:]
db = duckdb.connect()
db.execute("SET TimeZone = 'UTC'; SET threads = 2")


def rows(view):
    return f"""read_parquet({glob.glob(f"{folder}/store/views/{view}/*/data/*.parquet")})"""


HOUR = 3_600_000_000
# For each windowed view: its keys, what it calls counts, and its windows: length and step.
WINDOWED = {
    "airport_departures": (["origin"], "departures", {"2h": (2 * HOUR, HOUR // 12), "24h": (24 * HOUR, HOUR // 12)}),
    "carrier_landings": (["carrier"], "landings", {"6h": (6 * HOUR, HOUR // 4), "7d": (7 * 24 * HOUR, HOUR)}),
    "route_landings": (["origin", "dest"], "landings", {"1d": (24 * HOUR, HOUR), "14d": (14 * 24 * HOUR, HOUR)}),
}
LATEST = {"plane_landings": ["tailnum"], "airport_weather": ["origin"]}

# A window is the difference of two running sums: at the spine's time, and where the window begins.
running, joins, columns = [], "", []
for view, (keys, counts, windows) in WINDOWED.items():
    listed = ", ".join(keys)
    running.append(f"""{view} AS (
        SELECT {listed}, t, sum(s) OVER w AS s, sum(n) OVER w AS n, sum(c) OVER w AS c
        FROM (SELECT {listed}, epoch_us("@event_time") AS t, coalesce(sum(argument_0), 0) AS s, count(argument_0) AS n, count(*) AS c
              FROM {rows(view)} GROUP BY ALL)
        WINDOW w AS (PARTITION BY {listed} ORDER BY t ROWS UNBOUNDED PRECEDING))""")
    joins += f" ASOF LEFT JOIN {view} ON {' AND '.join(f'f.{key} = {view}.{key}' for key in keys)} AND f.t >= {view}.t"
    for suffix, (length, step) in windows.items():
        tail = f"{view}_{suffix}"
        joins += f" ASOF LEFT JOIN {view} {tail} ON {' AND '.join(f'f.{key} = {tail}.{key}' for key in keys)}"
        joins += f" AND (f.t - {length}) // {step} * {step} >= {tail}.t"
        columns.append(f"({view}.s - coalesce({tail}.s, 0))::DOUBLE / nullif({view}.n - coalesce({tail}.n, 0), 0) AS mean_delay_{tail}")
        columns.append(f"{view}.c - coalesce({tail}.c, 0) AS {counts}_{tail}")
for view, keys in LATEST.items():
    joins += f" ASOF LEFT JOIN {rows(view)} {view} ON {' AND '.join(f'f.{key} = {view}.{key}' for key in keys)}"
    joins += f" AND f.scheduled_at >= {view}.\"@event_time\""
    columns.append(f"{view}.* EXCLUDE ({', '.join(keys)}, \"@event_time\", \"@available_time\")")
start = time.perf_counter()
db.execute(f"""COPY (WITH {", ".join(running)},
    f AS (SELECT *, epoch_us(scheduled_at) AS t FROM read_parquet('{example}/data/flights.parquet'))
    SELECT f.origin, f.dest, f.carrier, f.tailnum, f.distance, f.scheduled_at, f.arr_delay >= 15 AS late,
    {", ".join(columns)}, p.year, p.seats, p.engines
    FROM f {joins}
    LEFT JOIN {rows("plane_facts")} p ON f.tailnum = p.tailnum
    WHERE f.scheduled_at < TIMESTAMP '2013-11-01') TO '{folder}/duckdb.parquet' (FORMAT parquet, COMPRESSION zstd)""")
print(time.perf_counter() - start)
