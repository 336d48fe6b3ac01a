-- Cancel tasks: a task that waits is FAILED at once; for a task that runs, a request is stored, and its worker
-- writes the outcome (or a rescue does, if the worker is dead). A finished task stays as it is.
-- $1 ids (sorted), $2 backend, $3 the error to store (JSON text)
UPDATE aiotasks_task AS task
SET status = CASE WHEN task.status = 'RUNNING' THEN 'RUNNING' ELSE 'FAILED' END,
    errors = CASE WHEN task.status = 'RUNNING' THEN task.errors ELSE task.errors || $3::json END,
    finished_at = CASE WHEN task.status = 'RUNNING' THEN NULL ELSE statement_timestamp() END,
    cancel_requested_at = coalesce(task.cancel_requested_at, statement_timestamp())
WHERE task.id = ANY($1::uuid[]) AND task.backend = $2::text
  AND task.status IN ('SCHEDULED', 'READY', 'RUNNING')
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
