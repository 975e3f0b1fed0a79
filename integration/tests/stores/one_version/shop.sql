CREATE EXTERNAL TABLE sales_file (shop VARCHAR NOT NULL, amount BIGINT NOT NULL, sold_at TIMESTAMP NOT NULL) STORED AS CSV LOCATION 'data/sales.csv' OPTIONS ('format.has_header' 'true');

CREATE SOURCE sales EVENT TIME sold_at AT TIME ZONE 'UTC'
  AS SELECT shop, amount, sold_at FROM sales_file;

CREATE ENTITY shop KEY (shop VARCHAR);

CREATE FEATURE VIEW last_sale ENTITY shop REFRESH EVERY '1 hour'
  AS SELECT shop, sold_at, amount FROM sales;

CREATE FEATURE VIEW turnover ENTITY shop WINDOWS ('2 hours') STEP '10 minutes' REFRESH EVERY '10 minutes'
  AS SELECT shop, sum(amount) AS sum, count(*) AS sales FROM sales GROUP BY shop;

CREATE CONTRACT busy TIER interactive
  REQUEST (shop VARCHAR NOT NULL, asked BIGINT NOT NULL)
  FEATURES (last_sale FRESH WITHIN '2 hours' ON STALE SERVE ON MISSING DEFAULT, turnover FRESH WITHIN '2 hours' ON STALE DEFAULT)
  INPUTS (asked, coalesce(last_sale.amount, 0) AS last, coalesce(turnover.sum_2h, 0) AS turned)
  OUTPUT (busy FLOAT)
  LATENCY '25 milliseconds' AT 0.99
  AVAILABILITY 0.999 OVER '30 days';
