-- The tasks that run, those first that have for longest, with the seconds since their start; and their workers, with
-- the seconds that are left of their leases (NULLs: the worker has no row).
-- $1 backend, $2 how many to return, $3 how many to look at
SELECT
    running.id, running.task_path, running.queue_name, running.priority, running.attempts,
    extract(epoch FROM statement_timestamp() - running.since)::double precision,
    running.cancel_requested_at IS NOT NULL,
    running.worker_id, worker.host, worker.pid,
    extract(
        epoch FROM least(greatest(worker.lease_expires_at, '1900-01-01Z'), '9000-01-01Z') - statement_timestamp()
    )::double precision
FROM (
    SELECT first.*
    FROM (
        SELECT
            task.id, task.task_path, task.queue_name, task.priority, cardinality(task.worker_ids) AS attempts,
            least(greatest(task.last_attempted_at, '1900-01-01Z'), '9000-01-01Z') AS since,
            task.cancel_requested_at, task.worker_id
        FROM aiotasks_task AS task
        WHERE task.status = 'RUNNING' AND task.backend = $1::text
        ORDER BY task.worker_id LIMIT $3::integer
    ) AS first
    ORDER BY first.since, first.id
    LIMIT $2::integer
) AS running
LEFT JOIN aiotasks_worker AS worker ON worker.id = running.worker_id
ORDER BY running.since, running.id
