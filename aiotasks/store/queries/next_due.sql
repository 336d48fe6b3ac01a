-- The earliest scheduled task: when it is due, and in how many seconds by the database's clock. Times that
-- Python can't hold are left out: 'infinity' never is due, and the next promotion takes '-infinity'.
-- $1 backend
SELECT task.run_after, extract(epoch FROM task.run_after - clock_timestamp())::double precision
FROM aiotasks_task AS task
WHERE task.status = 'SCHEDULED' AND task.backend = $1::text
  AND task.run_after BETWEEN '0002-01-01 00:00+00' AND '9998-01-01 00:00+00'
ORDER BY task.run_after
LIMIT 1
