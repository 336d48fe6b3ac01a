-- Take the keys that are held no longer from their tasks, and return the tasks that hold the others. A key that is
-- in neither has changed hands since the statement began. Waits for locked rows as long as $3 says at most (55P03).
-- One row of NULLs if no key is held.
-- $1 backend, $2 keys, $3 lock_timeout
WITH limits AS MATERIALIZED (
    SELECT current_setting('lock_timeout') AS before, set_config('lock_timeout', $3::text, true) AS now
), free AS MATERIALIZED (
    SELECT found.id
    FROM limits
    -- One look-up after the other, in the order of the keys. By `= ANY` and ORDER BY, PostgreSQL before 17 reads the
    -- whole index.
    CROSS JOIN (SELECT given.key FROM unnest($2::text[]) AS given (key) ORDER BY given.key) AS each
    CROSS JOIN LATERAL (
        SELECT task.id
        FROM aiotasks_task AS task
        WHERE task.backend = $1::text AND task.unique_key = each.key AND {key_is_free}
        FOR UPDATE
    ) AS found
), gone AS (
    UPDATE aiotasks_task AS task
    SET former_key = task.unique_key, unique_key = NULL
    -- Not a join: where the planner takes the table for empty, it would read all of it.
    WHERE task.id = ANY(ARRAY(SELECT free.id FROM free))
    RETURNING task.id
)
SELECT
    set_config('lock_timeout', limits.before, true),
    {job_columns}
FROM limits
-- The count has all keys taken away before the first row is returned, and with it the setting put back.
CROSS JOIN (SELECT count(*) FROM gone) AS first
-- Not only those whose key wasn't taken away: another session may have taken it since this one's snapshot.
LEFT JOIN (
    unnest($2::text[]) AS each (key)
    CROSS JOIN LATERAL (
        SELECT held.*
        FROM aiotasks_task AS held
        WHERE held.backend = $1::text AND held.unique_key = each.key
        OFFSET 0
    ) AS task
) ON NOT {key_is_free}
