-- Start no task of a key for some seconds, a year at most, because one has raised RateLimited. A longer time stays.
-- $1 backend, $2 key, $3 seconds
INSERT INTO aiotasks_limit AS own (backend, key, claimed_at, closed_until)
VALUES (
    $1::text, $2::text, statement_timestamp(),
    statement_timestamp() + make_interval(secs => least($3::double precision, 31536000))
)
ON CONFLICT (backend, key) DO UPDATE
SET closed_until = greatest(own.closed_until, excluded.closed_until)
