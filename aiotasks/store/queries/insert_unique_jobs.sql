-- Store new tasks with unique keys, each of which is here once; a task whose key the table has is left out, whether
-- it is held or not. Waits for transactions that have written one of the keys, as long as $14 says at most (55P03).
-- The keys are in the order of every such statement, so that two of them don't wait for each other.
-- Returns the ids of those stored; one row without an id if there are none.
-- $1 ids, $2 args, $3 kwargs (JSON text), $4 unique keys; the same for all: $5 backend, $6 queue name, $7 task path,
-- $8 lane, $9 priority, $10 enqueued_at, $11 run_after, $12 expires (seconds), $13 for how many seconds the keys are
-- held (NULL: by the status), $14 lock_timeout, $15 whether they are held only while the tasks wait,
-- $16 metadata (JSON text), from $17 on the policies
WITH limits AS MATERIALIZED (
    SELECT current_setting('lock_timeout') AS before, set_config('lock_timeout', $14::text, true) AS now
), stored AS (
    INSERT INTO aiotasks_task (
        id, backend, queue_name, task_path, lane, priority, status, args, kwargs, errors, worker_ids,
        crashes, enqueued_at, run_after, ready_at, expires_at, unique_key, unique_until, unique_waiting,
        metadata, {policy_columns}
    )
    SELECT
        new.id, $5::text, $6::text, $7::text, $8::text, $9::smallint,
        CASE WHEN $11::timestamptz > statement_timestamp() THEN 'SCHEDULED' ELSE 'READY' END,
        new.args::json, new.kwargs::json, '{}'::json[], '{}'::uuid[],
        0, $10::timestamptz, $11::timestamptz,
        CASE WHEN $11::timestamptz > statement_timestamp() THEN NULL ELSE statement_timestamp() END,
        greatest($11::timestamptz, statement_timestamp()) + make_interval(secs => $12::double precision),
        new.key, statement_timestamp() + make_interval(secs => $13::double precision), $15::boolean,
        $16::json, {policy_values:17}
    FROM limits
    CROSS JOIN (
        SELECT each.id, each.args, each.kwargs, each.key
        FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[]) AS each (id, args, kwargs, key)
        ORDER BY each.key
    ) AS new
    ON CONFLICT (backend, unique_key) WHERE unique_key IS NOT NULL DO NOTHING
    RETURNING id
)
SELECT stored.id, set_config('lock_timeout', limits.before, true)
FROM limits
-- The count has all rows inserted before the first is returned, and with it the setting put back.
CROSS JOIN (SELECT count(*) FROM stored) AS first
LEFT JOIN stored ON true
