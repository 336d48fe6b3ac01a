-- Tasks that FAILED in the last hour and in the last day, the latest first; and whether all tasks with a
-- keep_result were seen: their index is ordered by the end of that time.
-- $1 backend, $2 how many to count, of each kind
SELECT
    count(*) FILTER (WHERE failed.finished_at >= statement_timestamp() - interval '1 hour'),
    count(*),
    (
        SELECT count(*) FROM (
            SELECT FROM aiotasks_task AS task
            WHERE task.backend = $1::text AND task.finished_at IS NOT NULL AND task.keep_result IS NOT NULL
            LIMIT $2::integer
        ) AS seen
    ) < $2::integer
FROM (
    (
        SELECT task.finished_at FROM aiotasks_task AS task
        WHERE task.backend = $1::text AND task.status = 'FAILED' AND task.keep_result IS NULL
          AND task.finished_at >= statement_timestamp() - interval '1 day'
        ORDER BY task.finished_at DESC
        LIMIT $2::integer
    )
    UNION ALL
    SELECT kept.finished_at
    FROM (
        SELECT task.finished_at, task.status FROM aiotasks_task AS task
        WHERE task.backend = $1::text AND task.finished_at IS NOT NULL AND task.keep_result IS NOT NULL
        ORDER BY date_part('epoch', task.finished_at AT TIME ZONE 'UTC') + task.keep_result DESC
        LIMIT $2::integer
    ) AS kept
    WHERE kept.status = 'FAILED' AND kept.finished_at >= statement_timestamp() - interval '1 day'
) AS failed
