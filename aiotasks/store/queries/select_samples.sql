-- The samples of a backend that have figures, the newest first, with their age in seconds.
-- $1 backend, $2 age in seconds of the oldest, $3 how many
SELECT
    own.at, extract(epoch FROM statement_timestamp() - own.at)::double precision, own.figures::text
FROM aiotasks_sample AS own
WHERE own.backend = $1::text AND own.figures IS NOT NULL
  AND own.at >= statement_timestamp() - make_interval(secs => $2::double precision)
ORDER BY own.at DESC
LIMIT $3::integer
