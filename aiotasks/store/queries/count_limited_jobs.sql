-- READY tasks that have a limit, by queue. Counting stops at $3 in each.
-- $1 backend, $2 queue names, $3 how many to count in a queue
SELECT queue.name, counted.number
FROM unnest($2::text[]) AS queue (name)
CROSS JOIN LATERAL (
    SELECT count(*) AS number
    FROM (
        SELECT FROM aiotasks_task AS task
        WHERE task.status = 'READY' AND task.limit_key IS NOT NULL
          AND task.backend = $1::text AND task.queue_name = queue.name
        LIMIT $3::integer
    ) AS sample
) AS counted
WHERE counted.number > 0
