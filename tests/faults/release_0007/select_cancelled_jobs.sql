-- The tasks of a worker that are RUNNING and to be cancelled.
-- $1 worker id
SELECT task.id
FROM aiotasks_task AS task
WHERE task.status = 'RUNNING' AND task.worker_id = $1::uuid AND task.cancel_requested_at IS NOT NULL
