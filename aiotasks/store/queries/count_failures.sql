-- The latest FAILED tasks that a filter is for, by task and class of the last error: the most frequent groups first.
-- Those without a keep_result by their end; those with one as far as the first $2 of their index, which is ordered by
-- the end of that time.
-- Returns rows of: how many tasks were looked at, and whether that are all; of a group the task's path (NULL: there is
-- none), the class, the number of tasks, when the first and the last have finished, and the id of the last
-- $1 backend, $2 how many to look at, $3 how many groups, from $4 on the filter (see filtering.py)
WITH seen AS MATERIALIZED (
    SELECT latest.*, '.' || latest.class AS error
    FROM (
        (
            SELECT task.id, task.queue_name, task.task_path, task.unique_key, task.enqueued_at, task.finished_at,
                   {last_error} AS class, task.worker_ids[cardinality(task.worker_ids)] AS worker_id
            FROM aiotasks_task AS task
            WHERE task.backend = $1::text AND task.status = 'FAILED'
              AND task.finished_at IS NOT NULL AND task.keep_result IS NULL
              AND task.finished_at >= coalesce($9::timestamptz, '-infinity')
              AND task.finished_at <= coalesce($10::timestamptz, 'infinity')
            ORDER BY task.finished_at DESC LIMIT $2::integer
        )
        UNION ALL
        (
            SELECT task.id, task.queue_name, task.task_path, task.unique_key, task.enqueued_at, task.finished_at,
                   {last_error}, task.worker_ids[cardinality(task.worker_ids)]
            FROM (
                SELECT one.* FROM aiotasks_task AS one
                WHERE one.backend = $1::text AND one.finished_at IS NOT NULL AND one.keep_result IS NOT NULL
                ORDER BY date_part('epoch', one.finished_at AT TIME ZONE 'UTC') + one.keep_result DESC
                LIMIT $2::integer
            ) AS task
            WHERE task.status || '' = 'FAILED'
        )
    ) AS latest
), kept AS (
    SELECT count(*) AS number FROM (
        SELECT FROM aiotasks_task AS task
        WHERE task.backend = $1::text AND task.finished_at IS NOT NULL AND task.keep_result IS NOT NULL
        LIMIT $2::integer
    ) AS counted
), grouped AS (
    SELECT seen.task_path, seen.class, count(*) AS number, min(seen.finished_at) AS first,
           max(seen.finished_at) AS last, (array_agg(seen.id ORDER BY seen.finished_at DESC, seen.id DESC))[1] AS id
    FROM seen
    WHERE {filter_applies:4}
    GROUP BY seen.task_path, seen.class
    ORDER BY count(*) DESC, seen.task_path, seen.class
    LIMIT $3::integer
)
SELECT
    looked.number, looked.number < $2::integer AND kept.number < $2::integer,
    grouped.task_path, grouped.class, grouped.number, grouped.first, grouped.last, grouped.id
FROM (SELECT count(*) AS number FROM seen) AS looked
CROSS JOIN kept
LEFT JOIN grouped ON true
ORDER BY grouped.number DESC, grouped.task_path, grouped.class
