-- RUNNING tasks by queue, worker and lane; those with limits are counted in the plain lanes.
-- $1 backend, $2 how many to count
SELECT sample.queue_name, sample.worker_id, rtrim(sample.lane, '+'), count(*)
FROM (
    SELECT task.queue_name, task.worker_id, task.lane FROM aiotasks_task AS task
    WHERE task.status = 'RUNNING' AND task.backend = $1::text
    ORDER BY task.worker_id LIMIT $2::integer
) AS sample
GROUP BY 1, 2, 3
