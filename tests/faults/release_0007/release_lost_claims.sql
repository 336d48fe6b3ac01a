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
    task.id,
    task.queue_name,
    task.task_path,
    task.lane,
    task.priority,
    task.args::text,
    task.kwargs::text,
    task.errors::text[],
    task.worker_ids::text[],
    timestamptz_send(CASE WHEN task.enqueued_at BETWEEN '0001-01-02 00:00+00' AND '9999-12-31 00:00+00' THEN task.enqueued_at END),
    timestamptz_send(CASE WHEN task.run_after BETWEEN '0001-01-02 00:00+00' AND '9999-12-31 00:00+00' THEN task.run_after END),
    timestamptz_send(CASE WHEN task.ready_at BETWEEN '0001-01-02 00:00+00' AND '9999-12-31 00:00+00' THEN task.ready_at END),
    timestamptz_send(CASE WHEN task.started_at BETWEEN '0001-01-02 00:00+00' AND '9999-12-31 00:00+00' THEN task.started_at END),
    timestamptz_send(CASE WHEN task.last_attempted_at BETWEEN '0001-01-02 00:00+00' AND '9999-12-31 00:00+00' THEN task.last_attempted_at END),
    task.max_crashes, task.keep_result,
    task.claim_id,
    task.backend,
    task.status,
    task.return_value::text,
    timestamptz_send(CASE WHEN task.finished_at BETWEEN '0001-01-02 00:00+00' AND '9999-12-31 00:00+00' THEN task.finished_at END)
