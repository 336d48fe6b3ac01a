-- Lock the waiting holders of keys until this transaction ends, and return them. None of them is claimed before, so
-- it sees what the transaction has written when it runs. Waits for locked rows as long as $3 says at most (55P03).
-- One row of NULLs if none waits.
-- $1 backend, $2 keys, $3 lock_timeout
WITH limits AS MATERIALIZED (
    SELECT current_setting('lock_timeout') AS before, set_config('lock_timeout', $3::text, true) AS now
), held AS MATERIALIZED (
    SELECT waiting.*
    FROM limits
    -- As in free_unique_keys.
    CROSS JOIN (SELECT given.key FROM unnest($2::text[]) AS given (key) ORDER BY given.key) AS each
    CROSS JOIN LATERAL (
        SELECT *
        FROM aiotasks_task AS task
        WHERE task.backend = $1::text AND task.unique_key = each.key AND task.status IN ('SCHEDULED', 'READY')
        FOR SHARE
    ) AS waiting
)
SELECT
    set_config('lock_timeout', limits.before, true),
    {job_columns}
FROM limits
-- The count has all rows locked before the first is returned, and with it the setting put back.
CROSS JOIN (SELECT count(*) FROM held) AS first
LEFT JOIN held AS task ON true
