-- The earliest scheduled task: when it is due, and in how many seconds by the database's clock.
-- Planned anew every time: see claim_jobs.sql.
-- $1 backend
SELECT task.run_after, extract(epoch FROM task.run_after - clock_timestamp())::double precision
FROM aiotasks_task AS task
WHERE task.status = 'SCHEDULED' AND task.backend = $1::text
  AND ($1::text IS NOT NULL OR (SELECT count(*) FROM generate_series(1, 1000000000)) > 0)
ORDER BY task.run_after
LIMIT 1
