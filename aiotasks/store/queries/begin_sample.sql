-- Begin the sample of this minute, unless another worker has. Returns its id, or no row. The unique index decides between
-- workers, and nothing is locked meanwhile: if the worker dies, the sample stays without figures. Who begins one deletes the
-- backend's samples that are too old, so that those without figures go, too.
-- $1 backend, $2 seconds for which samples are kept
WITH begun AS (
    INSERT INTO aiotasks_sample (backend, at)
    SELECT $1::text, minute.at
    FROM (SELECT date_trunc('minute', statement_timestamp(), 'UTC') AS at) AS minute
    WHERE NOT EXISTS (SELECT FROM aiotasks_sample AS own WHERE own.backend = $1::text AND own.at = minute.at)
    ON CONFLICT (backend, at) DO NOTHING
    RETURNING id
), old AS (
    DELETE FROM aiotasks_sample AS own
    WHERE own.backend = $1::text
      AND own.at < statement_timestamp() - make_interval(secs => $2::double precision)
      AND EXISTS (SELECT FROM begun)
)
SELECT begun.id FROM begun
