-- SCHEDULED tasks by queue, of those that are due first: no index has both.
-- $1 backend, $2 how many to look at
SELECT sample.queue_name, count(*)
FROM (
    SELECT task.queue_name FROM aiotasks_task AS task
    WHERE task.status = 'SCHEDULED' AND task.backend = $1::text
    ORDER BY task.run_after LIMIT $2::integer
) AS sample
GROUP BY sample.queue_name
