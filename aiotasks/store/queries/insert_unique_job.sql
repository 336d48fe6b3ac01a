-- Store one new task with a unique key, unless another task holds the key. All in one statement: a key that its
-- task holds no longer is taken from it first. (Of several keys this statement would lock the holders before it
-- has the keys, and two such statements could wait for each other: insert_unique_jobs.)
-- A key that another transaction has written is waited for, as long as $15 says at most (55P03).
-- Returns whether the task was stored, and else the holder's columns; NULLs where the key has changed hands since
-- the statement began: to be run again.
-- $1 id, $2 backend, $3 queue name, $4 task path, $5 lane, $6 priority, $7 args, $8 kwargs (JSON text),
-- $9 enqueued_at, $10 run_after, $11 expires (seconds), $12 unique key, $13 for how many seconds it is held (NULL:
-- by the status), $14 whether only while the task waits, $15 lock_timeout, $16 metadata (JSON text), $17 limit
-- key, $18 whether its limit is in order (both as in insert_jobs), from $19 on the policies
WITH limits AS MATERIALIZED (
    SELECT current_setting('lock_timeout') AS before, set_config('lock_timeout', $15::text, true) AS now
), gone AS (
    UPDATE aiotasks_task AS task
    SET former_key = task.unique_key, unique_key = NULL
    FROM limits
    WHERE task.backend = $2::text AND task.unique_key = $12::text AND {key_is_free}
    RETURNING task.id
), stored AS (
    INSERT INTO aiotasks_task (
        id, backend, queue_name, task_path, lane, priority, status, args, kwargs, errors, worker_ids,
        crashes, enqueued_at, run_after, ready_at, expires_at, unique_key, unique_until, unique_waiting,
        metadata, limit_key, limit_place, ordered, {policy_columns}
    )
    SELECT
        $1::uuid, $2::text, $3::text, $4::text,
        CASE WHEN $17::text IS NULL THEN $5::text ELSE $5::text || '+' END, $6::smallint,
        CASE WHEN $10::timestamptz > statement_timestamp() THEN 'SCHEDULED' ELSE 'READY' END,
        $7::json, $8::json, '{}'::json[], '{}'::uuid[],
        0, $9::timestamptz, $10::timestamptz,
        CASE WHEN $10::timestamptz > statement_timestamp() THEN NULL ELSE statement_timestamp() END,
        greatest($10::timestamptz, statement_timestamp()) + make_interval(secs => $11::double precision),
        $12::text, statement_timestamp() + make_interval(secs => $13::double precision), $14::boolean,
        $16::json,
        $17::text, CASE WHEN $17::text IS NOT NULL THEN greatest($10::timestamptz, statement_timestamp()) END,
        CASE WHEN $17::text IS NOT NULL THEN $18::text END, {policy_values:19}
    -- The count has the key taken away before the row comes: what the statement itself has written is no conflict.
    FROM limits CROSS JOIN (SELECT count(*) FROM gone) AS first
    ON CONFLICT (backend, unique_key) WHERE unique_key IS NOT NULL DO NOTHING
    RETURNING id
)
SELECT
    stored.id IS NOT NULL,
    set_config('lock_timeout', limits.before, true),
    {job_columns}
FROM limits
LEFT JOIN stored ON true
-- Not only whose key wasn't taken away above: another session may have taken it since this one's snapshot.
LEFT JOIN aiotasks_task AS task
    ON stored.id IS NULL AND task.backend = $2::text AND task.unique_key = $12::text AND NOT {key_is_free}
