-- Store new tasks: READY, or SCHEDULED where run_after lies ahead by the database's clock.
-- Either all or, where one of the ids is there already, none. What tasks have in common comes once: there are
-- few kinds in a statement, and what is passed for each row takes most of the caller's time.
-- $1 ids, $2 the number of its kind per task (from 1), $3 args, $4 kwargs (JSON text), $5 enqueued_at;
-- per kind: $6 backends, $7 queue names, $8 task paths, $9 lanes, $10 priorities, $11 run_after,
-- $12 max_crashes
INSERT INTO aiotasks_task (
    id, backend, queue_name, task_path, lane, priority, status, args, kwargs, errors, worker_ids,
    crashes, enqueued_at, run_after, ready_at, max_crashes
)
SELECT
    new.id, ($6::text[])[new.kind], ($7::text[])[new.kind], ($8::text[])[new.kind], ($9::text[])[new.kind],
    ($10::smallint[])[new.kind],
    CASE WHEN ($11::timestamptz[])[new.kind] > clock_timestamp() THEN 'SCHEDULED' ELSE 'READY' END,
    new.args::json, new.kwargs::json, '{}'::json[], '{}'::uuid[],
    0, new.enqueued_at, ($11::timestamptz[])[new.kind],
    -- Not now(): a transaction that stays open must not queue-jump those that were quicker.
    CASE WHEN ($11::timestamptz[])[new.kind] > clock_timestamp() THEN NULL ELSE clock_timestamp() END,
    ($12::smallint[])[new.kind]
FROM unnest($1::uuid[], $2::integer[], $3::text[], $4::text[], $5::timestamptz[])
    AS new (id, kind, args, kwargs, enqueued_at)
