-- The queues and lanes that have READY tasks, in the order of the READY index, by a loose scan of it: the cost
-- depends on how many are listed, not on the tasks.
-- $1 backend, $2 and $3 the queue name and lane to begin after, $4 how many at most (NULL: all)
WITH RECURSIVE listed (queue_name, lane, number) AS (
    (
        SELECT task.queue_name, task.lane, 1
        FROM aiotasks_task AS task
        WHERE task.status = 'READY' AND task.backend = $1::text
          AND (task.queue_name, task.lane) > ($2::text, $3::text)
        ORDER BY task.queue_name, task.lane LIMIT 1
    )
    UNION ALL
    SELECT following.queue_name, following.lane, listed.number + 1
    FROM listed
    CROSS JOIN LATERAL (
        SELECT task.queue_name, task.lane
        FROM aiotasks_task AS task
        WHERE task.status = 'READY' AND task.backend = $1::text
          AND (task.queue_name, task.lane) > (listed.queue_name, listed.lane)
        ORDER BY task.queue_name, task.lane LIMIT 1
    ) AS following
    WHERE $4::integer IS NULL OR listed.number < $4::integer
)
SELECT queue_name, lane FROM listed
