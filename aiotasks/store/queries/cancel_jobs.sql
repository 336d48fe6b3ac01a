-- Cancel tasks: a task that waits is FAILED at once; for a task that runs, a request is stored, and its worker
-- writes the outcome (or a rescue does, if the worker is dead). A finished task stays as it is.
-- $1 ids (sorted), $2 backend, $3 the error to store (JSON text)
UPDATE aiotasks_task AS task
SET status = CASE WHEN task.status = 'RUNNING' THEN 'RUNNING' ELSE 'FAILED' END,
    errors = CASE WHEN task.status = 'RUNNING' THEN task.errors ELSE {errors_for_one_more} || $3::json END,
    errors_omitted = CASE WHEN task.status = 'RUNNING' THEN task.errors_omitted ELSE {errors_omitted_with_one_more} END,
    finished_at = CASE WHEN task.status = 'RUNNING' THEN NULL ELSE statement_timestamp() END,
    cancel_requested_at = coalesce(task.cancel_requested_at, statement_timestamp())
WHERE task.id = ANY($1::uuid[]) AND task.backend = $2::text
  AND task.status IN ('SCHEDULED', 'READY', 'RUNNING')
RETURNING
    {job_columns}
