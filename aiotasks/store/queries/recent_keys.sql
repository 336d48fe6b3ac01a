-- The keys of the tasks that became READY last in some queues: after a wake-up, where a walk through all keys would
-- take long. What a flood hides from it, the walk finds.
-- Returns as list_keys.
-- $1 backend, $2 lane as it is stored, $3 queue names, $4 for how many seconds they may have been READY,
-- $5 how many tasks to look at, of each queue and priority
SELECT DISTINCT ON (source.queue_name, recent.limit_key)
    source.queue_name, recent.limit_key::text, level.priority, recent.task_path
FROM unnest($3::text[]) AS source (queue_name)
CROSS JOIN LATERAL (
    WITH RECURSIVE level (priority) AS (
        (
            SELECT task.priority
            FROM aiotasks_task AS task
            WHERE task.status = 'READY' AND task.backend = $1::text AND task.queue_name = source.queue_name
              AND task.lane = $2::text
            ORDER BY task.priority DESC LIMIT 1
        )
        UNION ALL
        SELECT below.priority
        FROM level
        CROSS JOIN LATERAL (
            SELECT task.priority
            FROM aiotasks_task AS task
            WHERE task.status = 'READY' AND task.backend = $1::text AND task.queue_name = source.queue_name
              AND task.lane = $2::text AND task.priority < level.priority
            ORDER BY task.priority DESC LIMIT 1
        ) AS below
    )
    SELECT level.priority FROM level
) AS level
CROSS JOIN LATERAL (
    SELECT task.limit_key, task.task_path
    FROM aiotasks_task AS task
    WHERE task.status = 'READY' AND task.backend = $1::text AND task.queue_name = source.queue_name
      AND task.lane = $2::text AND task.priority = level.priority
      AND task.ready_at >= statement_timestamp() - make_interval(secs => $4::double precision)
    ORDER BY task.ready_at DESC, task.id DESC
    LIMIT $5::integer
) AS recent
WHERE recent.limit_key IS NOT NULL
ORDER BY source.queue_name, recent.limit_key, level.priority DESC
