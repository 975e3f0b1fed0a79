CREATE EXTERNAL TABLE payments STORED AS PARQUET LOCATION 'payments.parquet';
CREATE SOURCE paid EVENT TIME paid_at AT TIME ZONE 'Europe/Berlin' AVAILABLE AT known_at LATENESS '1 day'
  AS SELECT user_name, paid_at, known_at, amount FROM payments WHERE amount IS NOT NULL;
CREATE ENTITY user_account KEY (user_name VARCHAR, "Odd name" INT UNSIGNED);
CREATE FEATURE VIEW spending ENTITY user_account WINDOWS ('90 seconds', '1 day' STEP '1 hour') STEP '30 seconds'
  REFRESH EVERY '1 minute' TTL '1 hour' LOOKBACK '2 hours'
  AS SELECT user_name, count(*) AS payments, sum(amount) FILTER (WHERE amount > 1.5e3) AS much FROM paid GROUP BY user_name;
CREATE CONTRACT fraud TIER interactive REQUEST (user_name VARCHAR, country VARCHAR NOT NULL)
  FEATURES (spending FRESH WITHIN '2 minutes' MAX AGE '30 minutes' ON STALE SERVE ON EXPIRED DEFAULT ON MISSING FAIL)
  INPUTS (coalesce(spending.payments_90s, -1) AS payments, CASE WHEN country = 'NL' THEN 1 ELSE 0 END AS domestic)
  OUTPUT (fraud_probability FLOAT) LATENCY '25 milliseconds' AT 0.99 AVAILABILITY 0.999 OVER '30 days';
CREATE SPINE asked EVENT TIME t AT TIME ZONE 'Europe/Berlin' AS SELECT user_name, 'NL' AS country, paid_at AS t FROM payments;
DROP FEATURE VIEW spending;
