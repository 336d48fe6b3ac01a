-- Start no task of some keys for some seconds, a year at most, because tasks of them have raised RateLimited. A longer
-- time stays.
-- Waits for whoever has locked one of them, as long as $4 says at most (55P03). The keys are in order.
-- $1 backend, $2 keys, each once, $3 seconds, $4 lock_timeout
WITH limits AS MATERIALIZED (
    SELECT current_setting('lock_timeout') AS before, set_config('lock_timeout', $4::text, true) AS now
), closed AS (
    INSERT INTO aiotasks_limit AS own (backend, key, claimed_at, closed_until)
    SELECT
        $1::text, each.key, statement_timestamp(),
        statement_timestamp() + make_interval(secs => least(each.seconds, 31536000))
    FROM limits
    CROSS JOIN (
        SELECT given.key, given.seconds
        FROM unnest($2::text[], $3::double precision[]) AS given (key, seconds)
        ORDER BY given.key
    ) AS each
    ON CONFLICT (backend, key) DO UPDATE
    SET closed_until = greatest(own.closed_until, excluded.closed_until)
    RETURNING own.key
)
SELECT set_config('lock_timeout', limits.before, true)
FROM limits
-- The count has all keys closed before the setting is put back.
CROSS JOIN (SELECT count(*) FROM closed) AS first
