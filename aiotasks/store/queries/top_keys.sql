-- The keys of the first tasks of queues, by priority and age: an urgent one isn't to wait until a walk through all keys
-- comes to it.
-- Returns as list_keys.
-- $1 backend, $2 lane as it is stored, $3 queue names, $4 how many tasks to look at in each
SELECT source.queue_name, first.limit_key::text, max(first.priority), min(first.task_path)
FROM unnest($3::text[]) AS source (queue_name)
CROSS JOIN LATERAL (
    SELECT task.limit_key, task.priority, task.ready_at, task.task_path
    FROM aiotasks_task AS task
    WHERE task.status = 'READY' AND task.backend = $1::text AND task.queue_name = source.queue_name
      AND task.lane = $2::text
    ORDER BY task.priority DESC, task.ready_at, task.id
    LIMIT $4::integer
) AS first
WHERE first.limit_key IS NOT NULL
GROUP BY source.queue_name, first.limit_key
ORDER BY max(first.priority) DESC, min(first.ready_at)
