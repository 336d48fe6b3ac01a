-- READY tasks of keys of limits: how many, and for how many seconds the oldest of those counted has waited. Keys
-- without any aren't returned.
-- A key's tasks may be in several queues, and in both lanes. A loose scan of the index of keys finds these; of a
-- thousand queues the rest isn't looked at.
-- $1 backend, $2 keys, $3 how many tasks to count of a key
WITH RECURSIVE source (queue_name, lane, number) AS (
    (
        SELECT task.queue_name, task.lane, 1 FROM aiotasks_task AS task
        WHERE task.status = 'READY' AND task.limit_key IS NOT NULL AND task.backend = $1::text
        ORDER BY task.queue_name, task.lane LIMIT 1
    )
    UNION ALL
    SELECT following.queue_name, following.lane, source.number + 1
    FROM source
    CROSS JOIN LATERAL (
        SELECT task.queue_name, task.lane FROM aiotasks_task AS task
        WHERE task.status = 'READY' AND task.limit_key IS NOT NULL AND task.backend = $1::text
          AND (task.queue_name, task.lane) > (source.queue_name, source.lane)
        ORDER BY task.queue_name, task.lane LIMIT 1
    ) AS following
    WHERE source.number < 2000
)
SELECT
    wanted.key, counted.number,
    extract(epoch FROM statement_timestamp() - counted.oldest)::double precision
FROM unnest($2::text[]) AS wanted (key)
CROSS JOIN LATERAL (
    SELECT count(*) AS number, min(sample.ready_at) FILTER (WHERE isfinite(sample.ready_at)) AS oldest
    FROM (
        SELECT ready.ready_at
        FROM source
        CROSS JOIN LATERAL (
            SELECT task.ready_at FROM aiotasks_task AS task
            WHERE task.status = 'READY' AND task.limit_key IS NOT NULL AND task.backend = $1::text
              AND task.queue_name = source.queue_name AND task.lane = source.lane AND task.limit_key = wanted.key
            LIMIT $3::integer
        ) AS ready
        LIMIT $3::integer
    ) AS sample
) AS counted
WHERE counted.number > 0
