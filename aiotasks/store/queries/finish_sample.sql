-- Store the figures of a sample.
-- $1 id, $2 figures
UPDATE aiotasks_sample AS own
SET figures = $2::text::json
WHERE own.id = $1::bigint
