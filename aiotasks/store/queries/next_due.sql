-- The earliest scheduled task: when it is due, and in how many seconds by the database's clock.
-- $1 backend
SELECT task.run_after, extract(epoch FROM task.run_after - clock_timestamp())::double precision
FROM aiotasks_task AS task
WHERE task.status = 'SCHEDULED' AND task.backend = $1::text
ORDER BY task.run_after
LIMIT 1
