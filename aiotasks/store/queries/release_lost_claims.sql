-- Release the rows of claims whose reply was lost: they are RUNNING, but their worker, whose lease is live, doesn't
-- know of them. Rows of claims that the worker holds, or whose reply may still come, stay; a locked row is
-- released the next time. A task that was to be cancelled meanwhile is FAILED instead.
-- $1 worker id, $2 claim ids that it holds, $3 seconds that a claim's reply may take,
-- $4 the error of a cancelled task (JSON text)
UPDATE aiotasks_task AS task
SET status = CASE WHEN task.cancel_requested_at IS NULL THEN 'READY' ELSE 'FAILED' END,
    errors = CASE
        WHEN task.cancel_requested_at IS NULL THEN task.errors
        WHEN array_ndims(task.errors) > 1 THEN ARRAY[$4::json]
        ELSE task.errors || $4::json
    END,
    ready_at = CASE WHEN task.cancel_requested_at IS NULL THEN clock_timestamp() ELSE task.ready_at END,
    finished_at = CASE WHEN task.cancel_requested_at IS NOT NULL THEN statement_timestamp() END,
    limit_held = CASE WHEN task.cancel_requested_at IS NULL THEN {held_until_final} END,
    claim_id = NULL,
    worker_id = NULL,
    worker_ids = trim_array(task.worker_ids, least(1, cardinality(task.worker_ids))),
    started_at = CASE WHEN cardinality(task.worker_ids) > 1 THEN task.started_at END,
    last_attempted_at = CASE WHEN cardinality(task.worker_ids) > 1 THEN task.last_attempted_at END
WHERE task.ctid = ANY(ARRAY(
    SELECT lost.ctid
    FROM aiotasks_task AS lost
    WHERE lost.status = 'RUNNING' AND lost.worker_id = $1::uuid
      AND lost.claim_id <> ALL($2::uuid[])
      AND lost.last_attempted_at < statement_timestamp() - make_interval(secs => $3::double precision)
    FOR UPDATE SKIP LOCKED
))
RETURNING
    {job_columns}
