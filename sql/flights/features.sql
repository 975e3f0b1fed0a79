-- Entities, and what is known of them over time.

CREATE ENTITY airport KEY (origin VARCHAR);
CREATE ENTITY carrier KEY (carrier VARCHAR);
CREATE ENTITY route KEY (origin VARCHAR, dest VARCHAR);
CREATE ENTITY plane KEY (tailnum VARCHAR);

CREATE FEATURE VIEW airport_departures
  ENTITY airport
  WINDOWS ('2 hours', '24 hours') STEP '5 minutes'
  REFRESH EVERY '10 minutes'
  TTL '30 days'
  AS SELECT origin, avg(dep_delay) AS mean_delay, count(*) AS departures FROM departures GROUP BY origin;

CREATE FEATURE VIEW carrier_landings
  ENTITY carrier
  WINDOWS ('6 hours', '7 days' STEP '1 hour') STEP '15 minutes'
  REFRESH EVERY '30 minutes'
  TTL '30 days'
  AS SELECT carrier, avg(arr_delay) AS mean_delay, count(*) AS landings FROM landings GROUP BY carrier;

CREATE FEATURE VIEW route_landings
  ENTITY route
  WINDOWS ('1 day', '14 days') STEP '1 hour'
  REFRESH EVERY '1 hour'
  TTL '60 days'
  AS SELECT origin, dest, avg(arr_delay) AS mean_delay, count(*) AS landings FROM landings GROUP BY origin, dest;

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
