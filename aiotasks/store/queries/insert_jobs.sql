-- Store new tasks: READY, or SCHEDULED if run_after lies ahead by the database's clock. All are stored, or, if
-- the table has one of the ids already, none. Values that tasks share are passed once, as a template, because
-- most of the caller's time goes into the values passed for each row.
-- A task with a limit has a lane of its own, which claim_jobs doesn't know, and a place in its key's line, which stays
-- whatever becomes of the task: see claim_keyed.
-- $1 ids, $2 args, $3 kwargs (JSON text), $4 the number of each task's template, from 1, $5 enqueued_at
-- (where these four have one value, it is for all tasks), $14 limit keys (NULL: none; empty: no task has one);
-- per template: $6 backends, $7 queue names, $8 task paths, $9 lanes, $10 priorities, $11 run_after,
-- $12 expires (seconds), $13 metadata (JSON text), $15 whether its limit is in order (NULL, 'continue', 'stop'),
-- from $16 on the policies
INSERT INTO aiotasks_task (
    id, backend, queue_name, task_path, lane, priority, status, args, kwargs, errors, worker_ids,
    crashes, enqueued_at, run_after, ready_at, expires_at, metadata,
    limit_key, limit_place, ordered, {policy_columns}
)
SELECT
    new.id, ($6::text[])[new.template], ($7::text[])[new.template], ($8::text[])[new.template],
    CASE WHEN new.limit_key IS NULL THEN ($9::text[])[new.template] ELSE ($9::text[])[new.template] || '+' END,
    ($10::smallint[])[new.template],
    CASE WHEN ($11::timestamptz[])[new.template] > statement_timestamp() THEN 'SCHEDULED' ELSE 'READY' END,
    new.args::json, new.kwargs::json, '{}'::json[], '{}'::uuid[],
    0, new.enqueued_at, ($11::timestamptz[])[new.template],
    -- Not now(): a task of a transaction that stays open must not come before tasks that were committed earlier.
    CASE WHEN ($11::timestamptz[])[new.template] > statement_timestamp() THEN NULL ELSE statement_timestamp() END,
    greatest(($11::timestamptz[])[new.template], statement_timestamp())
        + make_interval(secs => ($12::double precision[])[new.template]),
    ($13::text[])[new.template]::json,
    new.limit_key,
    CASE WHEN new.limit_key IS NOT NULL THEN greatest(($11::timestamptz[])[new.template], statement_timestamp()) END,
    CASE WHEN new.limit_key IS NOT NULL THEN ($15::text[])[new.template] END, {policy_arrays:16}
FROM (
    SELECT
        each.id,
        coalesce(each.args, given.args[1]) AS args,
        coalesce(each.kwargs, given.kwargs[1]) AS kwargs,
        coalesce(each.template, given.templates[1]) AS template,
        coalesce(each.enqueued_at, given.enqueued_at[1]) AS enqueued_at,
        each.limit_key
    FROM (
        -- Each parameter once, because Django's drivers write its value wherever it is named.
        SELECT $1::uuid[], $2::text[], $3::text[], $4::integer[], $5::timestamptz[], $14::text[]
    ) AS given (ids, args, kwargs, templates, enqueued_at, limit_keys)
    CROSS JOIN LATERAL unnest(
        given.ids, given.args, given.kwargs, given.templates, given.enqueued_at, given.limit_keys
    ) AS each (id, args, kwargs, template, enqueued_at, limit_key)
) AS new
