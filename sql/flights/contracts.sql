-- Will this flight arrive 15 or more minutes late? Asked when it is scheduled to leave.

CREATE CONTRACT arrival_delay
  TIER interactive
  REQUEST (origin VARCHAR NOT NULL, dest VARCHAR NOT NULL, carrier VARCHAR NOT NULL, tailnum VARCHAR,
           distance INT NOT NULL, scheduled_at TIMESTAMP NOT NULL)
  FEATURES (
    airport_departures FRESH WITHIN '20 minutes' ON STALE SERVE ON MISSING DEFAULT,
    carrier_landings   FRESH WITHIN '1 hour'  ON STALE DEFAULT ON MISSING DEFAULT,
    route_landings     FRESH WITHIN '6 hours' MAX AGE '14 days' ON STALE DEFAULT ON EXPIRED DEFAULT ON MISSING DEFAULT,
    plane_landings     FRESH WITHIN '2 hours' MAX AGE '7 days' ON STALE SERVE ON EXPIRED SERVE ON MISSING DEFAULT,
    airport_weather    FRESH WITHIN '2 hours' MAX AGE '3 hours' ON STALE FAIL ON EXPIRED DEFAULT ON MISSING FAIL,
    plane_facts        FRESH WITHIN '30 days' ON STALE SERVE ON MISSING DEFAULT)
  INPUTS (
    distance,
    date_part('hour', scheduled_at) AS hour,
    date_part('dow', scheduled_at) AS weekday,
    origin = 'EWR' AS from_newark,
    origin = 'LGA' AS from_laguardia,
    coalesce(airport_departures.mean_delay_2h, 0) AS airport_delay_2h,
    coalesce(airport_departures.mean_delay_24h, 0) AS airport_delay_24h,
    coalesce(airport_departures.departures_2h, 0) AS airport_departures_2h,
    coalesce(carrier_landings.mean_delay_6h, 0) AS carrier_delay_6h,
    coalesce(carrier_landings.mean_delay_7d, 0) AS carrier_delay_7d,
    coalesce(route_landings.mean_delay_1d, 0) AS route_delay_1d,
    coalesce(route_landings.mean_delay_14d, 0) AS route_delay_14d,
    coalesce(plane_landings.last_delay, 0) AS plane_delay,
    plane_landings.last_delay IS NULL AS plane_unknown,
    coalesce(airport_weather.temp, 55) AS temperature,
    coalesce(airport_weather.wind_speed, 10) AS wind,
    coalesce(airport_weather.precip, 0) AS rain,
    coalesce(airport_weather.visib, 10) AS visibility,
    coalesce(plane_facts.year, 2001) AS plane_year,
    coalesce(plane_facts.seats, 140) AS seats)
  OUTPUT (late_probability FLOAT)
  LATENCY '25 milliseconds' AT 0.99
  AVAILABILITY 0.999 OVER '30 days';
