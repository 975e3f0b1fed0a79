CREATE FEATURE VIEW taste ENTITY user_account EVENT TIME seen_at AVAILABLE AT known_at REFRESH EVERY '1 hour'
  AS PUSHED (user_name VARCHAR, seen_at TIMESTAMP, known_at TIMESTAMP, embedding FLOAT[], shops VARCHAR[]);
CREATE SOURCE planes STATIC AS SELECT tailnum, "type", year::INT AS built FROM planes_file -- a comment
  /* /* another */ */ ;
