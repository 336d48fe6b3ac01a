-- Have a FAILED task run again, as retry_jobs, that takes back its unique key from where another task has taken it.
-- Nothing is done where that task holds the key. Where it is finished its key is taken away first. The index decides:
-- a task that has taken the key meanwhile makes the statement fail (23505), so it is for one task alone.
-- A key that another transaction has written is waited for, as long as $8 says at most (55P03).
-- Returns one row: whether the key is another task's, and retry_jobs' columns (NULLs: nothing was done).
-- $1 id, $2 to $7 which are meant, as in retry_jobs, $8 lock_timeout
WITH limits AS MATERIALIZED (
    SELECT current_setting('lock_timeout') AS before, set_config('lock_timeout', $8::text, true) AS now
), wanted AS MATERIALIZED (
    SELECT found.ctid AS place, found.id, found.former_key,
           nullif(coalesce(found.asked_run_after, found.run_after), 'epoch') AS run_after
    FROM limits
    CROSS JOIN LATERAL (
        SELECT task.ctid, task.id, task.former_key, task.asked_run_after, task.run_after
        FROM aiotasks_task AS task
        WHERE task.id = $1::uuid AND {is_meant}
          AND task.unique_key IS NULL AND task.former_key IS NOT NULL
        FOR UPDATE SKIP LOCKED
    ) AS found
), holder AS MATERIALIZED (
    SELECT task.id, {key_is_free} AS is_free
    FROM aiotasks_task AS task
    -- Not a join: where the planner takes the table for empty, it would read all keys.
    WHERE task.backend = $2::text AND task.unique_key = (SELECT wanted.former_key FROM wanted)
), gone AS (
    UPDATE aiotasks_task AS task
    SET former_key = task.unique_key, unique_key = NULL
    WHERE task.id = (SELECT holder.id FROM holder WHERE holder.is_free) AND {key_is_free}
    RETURNING task.id
), held AS MATERIALIZED (
    -- The count has the key taken away before the task takes it: what a statement itself has written is no conflict.
    SELECT wanted.*
    FROM wanted
    CROSS JOIN (SELECT count(*) FROM gone) AS first
    WHERE NOT EXISTS (SELECT FROM holder WHERE NOT holder.is_free)
), retried AS (
    UPDATE aiotasks_task AS task
    SET {values_of_a_retry},
    unique_key = task.former_key,
    former_key = NULL
    FROM held
    WHERE task.ctid = held.place
    RETURNING task.id, task.queue_name, task.lane,
        CASE WHEN task.status = 'SCHEDULED' THEN date_part('epoch', task.run_after) END AS due
)
SELECT
    set_config('lock_timeout', limits.before, true),
    EXISTS (SELECT FROM holder WHERE NOT holder.is_free),
    retried.id, retried.queue_name, retried.lane, retried.due
FROM limits
LEFT JOIN retried ON true
