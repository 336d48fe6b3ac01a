-- The names of the queues that have READY tasks, by a loose index scan of the READY index: the cost depends on
-- the number of names, not of tasks.
-- $1 backend
WITH RECURSIVE queue (name) AS (
    (
        SELECT task.queue_name FROM aiotasks_task AS task
        WHERE task.status = 'READY' AND task.backend = $1::text
        ORDER BY task.queue_name LIMIT 1
    )
    UNION ALL
    SELECT (
        SELECT task.queue_name FROM aiotasks_task AS task
        WHERE task.status = 'READY' AND task.backend = $1::text AND task.queue_name > queue.name
        ORDER BY task.queue_name LIMIT 1
    )
    FROM queue
    WHERE queue.name IS NOT NULL
)
SELECT name FROM queue WHERE name IS NOT NULL
