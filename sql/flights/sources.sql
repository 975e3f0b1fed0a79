-- Where history lies, and what happened when.

CREATE EXTERNAL TABLE flights STORED AS PARQUET LOCATION 'data/flights.parquet';
CREATE EXTERNAL TABLE weather STORED AS PARQUET LOCATION 'data/weather.parquet';
CREATE EXTERNAL TABLE planes STORED AS PARQUET LOCATION 'data/planes.parquet';

-- A departure delay is known when the plane leaves.
CREATE SOURCE departures EVENT TIME departed_at
  AS SELECT origin, departed_at, dep_delay FROM flights WHERE departed_at IS NOT NULL;

-- An arrival delay is known when the plane has landed.
CREATE SOURCE landings EVENT TIME landed_at
  AS SELECT origin, dest, carrier, tailnum, landed_at, arr_delay FROM flights WHERE landed_at IS NOT NULL;

CREATE SOURCE weather_observations EVENT TIME observed_at
  AS SELECT origin, observed_at, temp, wind_speed, precip, visib FROM weather;

-- What a plane is holds at every time.
CREATE SOURCE plane_register STATIC
  AS SELECT tailnum, year, seats, engines FROM planes;
