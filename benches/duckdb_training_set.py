"""DuckDB's side of the training-set benchmark: ASOF joins of the same committed rows, written to Parquet.

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


VIEWS = {
    "airport_departures": ["origin"], "carrier_landings": ["carrier"], "route_landings": ["origin", "dest"],
    "plane_landings": ["tailnum"], "airport_weather": ["origin"],
}
joins = "".join(
    f" ASOF LEFT JOIN {rows(view)} {view} ON {' AND '.join(f'f.{key} = {view}.{key}' for key in keys)}"
    f" AND f.scheduled_at >= {view}.\"@event_time\""
    for view, keys in VIEWS.items())
columns = ", ".join(f"{view}.* EXCLUDE ({', '.join(keys)}, \"@event_time\", \"@available_time\")" for view, keys in VIEWS.items())
start = time.perf_counter()
db.execute(f"""COPY (SELECT f.origin, f.dest, f.carrier, f.tailnum, f.distance, f.scheduled_at, f.arr_delay >= 15 AS late,
    {columns}, p.year, p.seats, p.engines
    FROM read_parquet('{example}/data/flights.parquet') f {joins}
    LEFT JOIN {rows("plane_facts")} p ON f.tailnum = p.tailnum
    WHERE f.scheduled_at < TIMESTAMP '2013-11-01') TO '{folder}/duckdb.parquet' (FORMAT parquet, COMPRESSION zstd)""")
print(time.perf_counter() - start)
