-- Look tasks up by id.
-- $1 ids, $2 backend
SELECT
    id, claim_id, backend, queue_name, task_path, lane, priority, status,
    args::text, kwargs::text, return_value::text, errors::text[], worker_ids::text[],
    enqueued_at, run_after, ready_at, started_at, last_attempted_at, finished_at, max_crashes
FROM aiotasks_task
WHERE id = ANY($1::uuid[]) AND backend = $2::text
