-- Look tasks up by id. A run_after of 'infinity' (an older release made it of datetime.max) is read as none.
-- $1 ids, $2 backend
SELECT
    id, claim_id, backend, queue_name, task_path, lane, priority, status,
    args::text, kwargs::text, return_value::text, errors::text[], worker_ids::text[],
    enqueued_at,
    CASE WHEN run_after BETWEEN '0001-01-02 00:00+00' AND '9999-12-31 00:00+00' THEN run_after END,
    ready_at, started_at, last_attempted_at, finished_at, max_crashes, keep_result
FROM aiotasks_task
WHERE id = ANY($1::uuid[]) AND backend = $2::text
