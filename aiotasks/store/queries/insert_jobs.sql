-- Store new tasks: READY, or SCHEDULED where run_after lies ahead by the database's clock.
-- Repeating it (the reply was lost) changes nothing.
-- $1 ids, $2 backend per task, $3 queue names, $4 task paths, $5 lanes, $6 priorities,
-- $7 args, $8 kwargs (JSON text), $9 enqueued_at, $10 run_after, $11 max_crashes
INSERT INTO aiotasks_task (
    id, backend, queue_name, task_path, lane, priority, status, args, kwargs, errors, worker_ids,
    crashes, enqueued_at, run_after, ready_at, max_crashes
)
SELECT
    new.id, new.backend, new.queue_name, new.task_path, new.lane, new.priority,
    CASE WHEN new.run_after > clock_timestamp() THEN 'SCHEDULED' ELSE 'READY' END,
    new.args::json, new.kwargs::json, '{}'::json[], '{}'::uuid[],
    0, new.enqueued_at, new.run_after,
    -- Not now(): a transaction that stays open must not queue-jump those that were quicker.
    CASE WHEN new.run_after > clock_timestamp() THEN NULL ELSE clock_timestamp() END,
    new.max_crashes
FROM unnest(
    $1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::smallint[],
    $7::text[], $8::text[], $9::timestamptz[], $10::timestamptz[], $11::smallint[]
) AS new (
    id, backend, queue_name, task_path, lane, priority, args, kwargs, enqueued_at, run_after, max_crashes
)
ON CONFLICT (id) DO NOTHING
