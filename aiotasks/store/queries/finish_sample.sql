-- Store the figures of a sample, and delete the backend's samples that are too old.
-- $1 id, $2 backend, $3 figures, $4 seconds for which samples are kept
WITH old AS (
    DELETE FROM aiotasks_sample AS own
    WHERE own.backend = $2::text
      AND own.at < statement_timestamp() - make_interval(secs => $4::double precision)
)
UPDATE aiotasks_sample AS own
SET figures = $3::text::json
WHERE own.id = $1::bigint
