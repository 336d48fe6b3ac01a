-- The queues, lanes and priorities that have READY tasks, by a loose scan of the READY index as in list_queues.
-- (UNION ALL: the second is asked only where the first has nothing. The queue is compared outside of the LIMIT, or
-- the scan would go on through all other queues.)
-- $1 backend, $2 the queue name (NULL: all)
WITH RECURSIVE listed (queue_name, lane, priority) AS (
    SELECT first.queue_name, first.lane, first.priority
    FROM (
        SELECT task.queue_name, task.lane, task.priority
        FROM aiotasks_task AS task
        WHERE task.status = 'READY' AND task.backend = $1::text AND task.queue_name >= coalesce($2::text, '')
        ORDER BY task.queue_name, task.lane, task.priority DESC LIMIT 1
    ) AS first
    WHERE $2::text IS NULL OR first.queue_name = $2::text
    UNION ALL
    SELECT following.queue_name, following.lane, following.priority
    FROM listed
    CROSS JOIN LATERAL (
        (
            SELECT task.queue_name, task.lane, task.priority
            FROM aiotasks_task AS task
            WHERE task.status = 'READY' AND task.backend = $1::text
              AND task.queue_name = listed.queue_name AND task.lane = listed.lane AND task.priority < listed.priority
            ORDER BY task.priority DESC LIMIT 1
        )
        UNION ALL
        (
            SELECT task.queue_name, task.lane, task.priority
            FROM aiotasks_task AS task
            WHERE task.status = 'READY' AND task.backend = $1::text
              AND (task.queue_name, task.lane) > (listed.queue_name, listed.lane)
            ORDER BY task.queue_name, task.lane, task.priority DESC LIMIT 1
        )
        LIMIT 1
    ) AS following
    WHERE $2::text IS NULL OR following.queue_name = $2::text
)
SELECT queue_name, lane, priority FROM listed
