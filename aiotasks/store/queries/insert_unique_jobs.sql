-- Store new tasks with unique keys, each of which is here once; a task whose key the table has is left out, whether
-- it is held or not. Waits for transactions that have written one of the keys, as long as $7 says at most (55P03).
-- The keys are in the order of every such statement, so that two of them don't wait for each other.
-- Returns the ids of those stored; one row without an id if there are none.
-- $1 ids, $2 args, $3 kwargs (JSON text), $4 unique keys, $5 the number of each task's template, from 1 (empty: 1),
-- $6 enqueued_at of all, $7 lock_timeout;
-- per template: $8 backends, $9 queue names, $10 task paths, $11 lanes, $12 priorities, $13 run_after,
-- $14 expires (seconds), $15 for how many seconds the keys are held (NULL: by the status), $16 whether they are held
-- only while the tasks wait, $17 metadata (JSON text); $18 limit keys of each task (empty: none has one); per template:
-- $19 whether its limit is in order (both as in insert_jobs), from $20 on the policies
WITH limits AS MATERIALIZED (
    SELECT current_setting('lock_timeout') AS before, set_config('lock_timeout', $7::text, true) AS now
), stored AS (
    INSERT INTO aiotasks_task (
        id, backend, queue_name, task_path, lane, priority, status, args, kwargs, errors, worker_ids,
        crashes, enqueued_at, run_after, ready_at, expires_at, unique_key, unique_until, unique_waiting,
        metadata, limit_key, limit_place, ordered, {policy_columns}
    )
    SELECT
        new.id, ($8::text[])[new.template], ($9::text[])[new.template], ($10::text[])[new.template],
        CASE WHEN new.limit_key IS NULL THEN ($11::text[])[new.template] ELSE ($11::text[])[new.template] || '+' END,
        ($12::smallint[])[new.template],
        CASE WHEN ($13::timestamptz[])[new.template] > statement_timestamp() THEN 'SCHEDULED' ELSE 'READY' END,
        new.args::json, new.kwargs::json, '{}'::json[], '{}'::uuid[],
        0, $6::timestamptz, ($13::timestamptz[])[new.template],
        CASE WHEN ($13::timestamptz[])[new.template] > statement_timestamp() THEN NULL ELSE statement_timestamp() END,
        greatest(($13::timestamptz[])[new.template], statement_timestamp())
            + make_interval(secs => ($14::double precision[])[new.template]),
        new.key, statement_timestamp() + make_interval(secs => ($15::double precision[])[new.template]),
        ($16::boolean[])[new.template], ($17::text[])[new.template]::json,
        new.limit_key,
        CASE
            WHEN new.limit_key IS NOT NULL THEN greatest(($13::timestamptz[])[new.template], statement_timestamp())
        END,
        CASE WHEN new.limit_key IS NOT NULL THEN ($19::text[])[new.template] END, {policy_arrays:20}
    FROM limits
    CROSS JOIN (
        SELECT each.id, each.args, each.kwargs, each.key, coalesce(each.template, 1) AS template, each.limit_key
        FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::integer[], $18::text[])
            AS each (id, args, kwargs, key, template, limit_key)
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
