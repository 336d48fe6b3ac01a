-- Make the rows of keys that a claim has reported as new. A statement of its own, because it waits for whoever has
-- written one of the keys and not committed yet, as long as $3 says at most (55P03): it holds nothing that a claim
-- could wait for, and the keys are in order.
-- $1 backend, $2 keys, $3 lock_timeout
WITH limits AS MATERIALIZED (
    SELECT current_setting('lock_timeout') AS before, set_config('lock_timeout', $3::text, true) AS now
), made AS (
    INSERT INTO aiotasks_limit (backend, key, claimed_at, paid_at)
    SELECT $1::text, new.key, statement_timestamp(), statement_timestamp()
    FROM limits
    CROSS JOIN (
        SELECT DISTINCT each.key FROM unnest($2::text[]) AS each (key) ORDER BY each.key
    ) AS new
    ON CONFLICT DO NOTHING
    RETURNING key
)
SELECT set_config('lock_timeout', limits.before, true)
FROM limits
-- The count has all rows inserted before the setting is put back.
CROSS JOIN (SELECT count(*) FROM made) AS first
