-- The backends, queues and lanes that have READY tasks, of all backends that share this database, by a loose index
-- scan of the READY index: the cost depends on the number of rows returned, not of tasks.
-- $1 how many
WITH RECURSIVE waiting (backend, queue_name, lane) AS (
    (
        SELECT task.backend, task.queue_name, task.lane FROM aiotasks_task AS task
        WHERE task.status = 'READY'
        ORDER BY task.backend, task.queue_name, task.lane LIMIT 1
    )
    UNION ALL
    SELECT next.backend, next.queue_name, next.lane
    FROM waiting
    CROSS JOIN LATERAL (
        SELECT task.backend, task.queue_name, task.lane FROM aiotasks_task AS task
        WHERE task.status = 'READY'
          AND (task.backend, task.queue_name, task.lane) > (waiting.backend, waiting.queue_name, waiting.lane)
        ORDER BY task.backend, task.queue_name, task.lane LIMIT 1
    ) AS next
)
SELECT waiting.backend, waiting.queue_name, waiting.lane FROM waiting LIMIT $1::integer
