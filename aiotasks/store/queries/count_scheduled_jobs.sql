-- SCHEDULED tasks by queue, of the tasks that are due first, because no index has both.
-- $1 backend, $2 how many to count
SELECT sample.queue_name, count(*)
FROM (
    SELECT task.queue_name FROM aiotasks_task AS task
    WHERE task.status = 'SCHEDULED' AND task.backend = $1::text
    ORDER BY task.run_after LIMIT $2::integer
) AS sample
GROUP BY sample.queue_name
