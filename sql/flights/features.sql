-- Entities, and what is known of them over time.

CREATE ENTITY airport KEY (origin VARCHAR);
CREATE ENTITY carrier KEY (carrier VARCHAR);
CREATE ENTITY route KEY (origin VARCHAR, dest VARCHAR);
CREATE ENTITY plane KEY (tailnum VARCHAR);

CREATE FEATURE VIEW airport_departures
  ENTITY airport
  REFRESH EVERY '10 minutes'
  TTL '30 days'
  LOOKBACK '24 hours'
  AS SELECT origin, departed_at,
            avg(dep_delay) OVER last_2h AS mean_delay_2h,
            count(*) OVER last_2h AS departures_2h,
            avg(dep_delay) OVER last_24h AS mean_delay_24h,
            count(*) OVER last_24h AS departures_24h
     FROM departures
     WINDOW last_2h AS (PARTITION BY origin ORDER BY departed_at RANGE BETWEEN INTERVAL '2 hours' PRECEDING AND CURRENT ROW),
            last_24h AS (PARTITION BY origin ORDER BY departed_at RANGE BETWEEN INTERVAL '24 hours' PRECEDING AND CURRENT ROW);

CREATE FEATURE VIEW carrier_landings
  ENTITY carrier
  REFRESH EVERY '30 minutes'
  TTL '30 days'
  LOOKBACK '7 days'
  AS SELECT carrier, landed_at,
            avg(arr_delay) OVER last_6h AS mean_delay_6h,
            avg(arr_delay) OVER last_7d AS mean_delay_7d,
            count(*) OVER last_7d AS landings_7d
     FROM landings
     WINDOW last_6h AS (PARTITION BY carrier ORDER BY landed_at RANGE BETWEEN INTERVAL '6 hours' PRECEDING AND CURRENT ROW),
            last_7d AS (PARTITION BY carrier ORDER BY landed_at RANGE BETWEEN INTERVAL '7 days' PRECEDING AND CURRENT ROW);

CREATE FEATURE VIEW route_landings
  ENTITY route
  REFRESH EVERY '1 hour'
  TTL '60 days'
  LOOKBACK '14 days'
  AS SELECT origin, dest, landed_at,
            avg(arr_delay) OVER last_1d AS mean_delay_1d,
            avg(arr_delay) OVER last_14d AS mean_delay_14d,
            count(*) OVER last_14d AS landings_14d
     FROM landings
     WINDOW last_1d AS (PARTITION BY origin, dest ORDER BY landed_at RANGE BETWEEN INTERVAL '1 day' PRECEDING AND CURRENT ROW),
            last_14d AS (PARTITION BY origin, dest ORDER BY landed_at RANGE BETWEEN INTERVAL '14 days' PRECEDING AND CURRENT ROW);

-- Two landings of one plane in one minute are one event: the later one's delay is not known, so the greater is taken.
CREATE FEATURE VIEW plane_landings
  ENTITY plane
  REFRESH EVERY '30 minutes'
  LOOKBACK '1 minute'
  AS SELECT tailnum, landed_at, max(arr_delay) AS last_delay FROM landings GROUP BY tailnum, landed_at;

CREATE FEATURE VIEW airport_weather
  ENTITY airport
  REFRESH EVERY '1 hour'
  AS SELECT origin, observed_at, temp, wind_speed, precip, visib FROM weather_observations;

CREATE FEATURE VIEW plane_facts
  ENTITY plane
  REFRESH EVERY '7 days'
  AS SELECT tailnum, year, seats, engines FROM plane_register;
