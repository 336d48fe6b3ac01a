-- Delete the rows of keys from which nothing has been claimed for an hour, of which no task takes up a place, whose
-- rate is paid for, and of which no operator has said anything. Claims make them again. (An hour, because no claim
-- lasts that long: one that has seen the old row would count nothing that was claimed by a new one.)
-- Returns how many were looked at, and the last key (NULL: there are no more).
-- $1 backend, $2 the key to begin after, $3 how many to look at
WITH setting AS MATERIALIZED (
    SELECT set_config('synchronous_commit', 'off', true)
), looked AS MATERIALIZED (
    SELECT
        own.key,
        own.claimed_at < statement_timestamp() - interval '1 hour'
            AND coalesce(own.paid_at < statement_timestamp(), true)
            AND coalesce(own.closed_until < statement_timestamp(), true)
            AND num_nonnulls(own.paused_at, own.concurrency, own.pace, own.burst, own.weight) = 0
            AND held.number = 0 AS is_idle
    FROM setting
    CROSS JOIN LATERAL (
        SELECT one.*
        FROM aiotasks_limit AS one
        WHERE one.backend = $1::text AND one.key > $2::text
        ORDER BY one.key
        LIMIT $3::integer
    ) AS own
    -- Not by EXISTS, for which the planner may read all tasks.
    CROSS JOIN LATERAL (
        SELECT count(*) AS number
        FROM (
            SELECT FROM aiotasks_task AS task
            WHERE task.backend = $1::text AND task.limit_held = own.key
            LIMIT 1
        ) AS one
    ) AS held
), gone AS (
    DELETE FROM aiotasks_limit AS own
    WHERE own.ctid = ANY(ARRAY(
        SELECT held.ctid
        FROM looked
        CROSS JOIN LATERAL (
            SELECT one.ctid
            FROM aiotasks_limit AS one
            WHERE one.backend = $1::text AND one.key = looked.key
              AND one.claimed_at < statement_timestamp() - interval '1 hour'
            FOR UPDATE SKIP LOCKED
        ) AS held
        WHERE looked.is_idle
    ))
)
SELECT count(*), max(looked.key)::text FROM looked
