-- The RUNNING task that was claimed first, of the tasks that are read, and for how many seconds it has run.
-- $1 backend, $2 how many to read
SELECT
    sample.id, sample.task_path, sample.worker_id,
    extract(epoch FROM statement_timestamp() - sample.last_attempted_at)::double precision
FROM (
    SELECT task.id, task.task_path, task.worker_id, task.last_attempted_at FROM aiotasks_task AS task
    WHERE task.status = 'RUNNING' AND task.backend = $1::text
    ORDER BY task.worker_id LIMIT $2::integer
) AS sample
WHERE isfinite(sample.last_attempted_at)
ORDER BY sample.last_attempted_at LIMIT 1
