-- READY tasks of some queues: how many, and for how many seconds the oldest has waited.
--
-- The cost depends on the queues shown, not on the backlog: counting stops at a limit, and the oldest task is the
-- first of one of the queue's priorities, which a loose index scan finds in the READY index.
-- $1 backend, $2 queue names, $3 how many to count in a queue
SELECT
    queue.name, counted.number,
    extract(epoch FROM statement_timestamp() - oldest.ready_at)::double precision
FROM unnest($2::text[]) AS queue (name)
CROSS JOIN LATERAL (
    SELECT count(*) AS number
    FROM (
        SELECT FROM aiotasks_task AS task
        WHERE task.status = 'READY' AND task.backend = $1::text AND task.queue_name = queue.name
        LIMIT $3::integer
    ) AS sample
) AS counted
CROSS JOIN LATERAL (
    SELECT min(first.ready_at) FILTER (WHERE isfinite(first.ready_at)) AS ready_at
    FROM unnest(ARRAY['loop', 'thread', 'loop+', 'thread+']) AS lane (name)
    CROSS JOIN LATERAL (
        WITH RECURSIVE first (priority, ready_at) AS (
            (
                SELECT task.priority, task.ready_at FROM aiotasks_task AS task
                WHERE task.status = 'READY' AND task.backend = $1::text
                  AND task.queue_name = queue.name AND task.lane = lane.name
                ORDER BY task.priority DESC, task.ready_at, task.id LIMIT 1
            )
            UNION ALL
            SELECT below.priority, below.ready_at
            FROM first
            CROSS JOIN LATERAL (
                SELECT task.priority, task.ready_at FROM aiotasks_task AS task
                WHERE task.status = 'READY' AND task.backend = $1::text
                  AND task.queue_name = queue.name AND task.lane = lane.name
                  AND task.priority < first.priority
                ORDER BY task.priority DESC, task.ready_at, task.id LIMIT 1
            ) AS below
        )
        SELECT first.ready_at FROM first
    ) AS first
) AS oldest
