-- The keys of limits that have READY tasks in some queues, in the order of the index, by a loose scan of it: the cost
-- depends on how many are listed, not on the tasks.
-- Returns queue name, key, and the priority and path of its first task.
-- $1 backend, $2 lane as it is stored, $3 queue names, $4 per queue the key to begin after ('': the first),
-- $5 how many keys at most in each queue
SELECT source.queue_name, listed.key, listed.priority, listed.task_path
FROM unnest($3::text[], $4::text[]) AS source (queue_name, after)
CROSS JOIN LATERAL (
    WITH RECURSIVE listed (number, key, priority, task_path) AS (
        SELECT 0, source.after, 0::smallint, ''
        UNION ALL
        SELECT listed.number + 1, following.limit_key, following.priority, following.task_path
        FROM listed
        CROSS JOIN LATERAL (
            SELECT task.limit_key::text, task.priority, task.task_path
            FROM aiotasks_task AS task
            WHERE task.status = 'READY' AND task.backend = $1::text AND task.queue_name = source.queue_name
              AND task.lane = $2::text AND task.limit_key > listed.key
            ORDER BY task.limit_key, task.priority DESC, task.limit_place, task.id LIMIT 1
        ) AS following
        WHERE listed.number < $5::integer
    )
    SELECT listed.number, listed.key, listed.priority, listed.task_path FROM listed
    WHERE listed.number > 0
) AS listed
ORDER BY source.queue_name, listed.number
