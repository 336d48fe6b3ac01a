-- Store what an operator says of a limit, or of a key; what isn't given stays as it was.
-- $1 backend, $2 key, $3 concurrency, $4 rate as it is shown, $5 pace (0: no rate), $6 burst, $7 weight
INSERT INTO aiotasks_limit AS own (backend, key, claimed_at, concurrency, rate, pace, burst, weight)
VALUES (
    $1::text, $2::text, statement_timestamp(), $3::integer, $4::text, $5::double precision, $6::integer, $7::integer
)
ON CONFLICT (backend, key) DO UPDATE
SET concurrency = coalesce(excluded.concurrency, own.concurrency),
    rate = coalesce(excluded.rate, own.rate),
    pace = coalesce(excluded.pace, own.pace),
    burst = coalesce(excluded.burst, own.burst),
    weight = coalesce(excluded.weight, own.weight)
