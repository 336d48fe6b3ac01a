-- The tasks that a filter is for, one leg of the walk at a time, in the order of the leg's index: a leg is a status,
-- or a part of one ('kept': finished tasks with a keep_result; 'ready': READY tasks of one queue, lane and priority;
-- 'key': the task with the unique key). A statement looks at so many rows at most, so that none takes long, whatever
-- the filter leaves out; the next one begins where it ended. Only one leg's branch is run: the conditions on $2 of
-- the others are false before a row is read.
-- Places are epoch seconds, because Python can't hold every time of the database; where they bound an index scan,
-- with a millisecond to spare for those that a float can't hold exactly. (OFFSET 0: RUNNING tasks are few, and to
-- read them in the order of all ids would be to read all others.)
-- Returns one row: the ids of the tasks that the filter is for, the place of the last row that was looked at (epoch
-- seconds and id; NULLs: there was none), and how many rows those were.
-- $1 backend, $2 leg, $3 status, $4 queue name, $5 lane, $6 priority, where to begin after: $7 epoch seconds, $8 id,
-- $9 epoch seconds where the leg ends, $10 how many to look at, the filter (NULL: any): $11 queue name,
-- $12 task path, $13 unique key, $14 enqueued at the earliest, $15 before, $16 finished at the earliest, $17 before,
-- $18 the class of the last error, $19 the worker of the last execution (see columns.py)
WITH seen AS MATERIALIZED (
    (
        SELECT date_part('epoch', task.run_after) AS at, task.id, {filter_columns:11}
        FROM aiotasks_task AS task
        WHERE $2::text = 'scheduled' AND task.status = 'SCHEDULED' AND task.backend = $1::text
          AND task.run_after >= to_timestamp($7::double precision) - interval '1 millisecond'
          AND (date_part('epoch', task.run_after), task.id) > ($7::double precision, $8::uuid)
        ORDER BY task.run_after, task.id LIMIT $10::integer
    )
    UNION ALL
    (
        SELECT date_part('epoch', task.ready_at), task.id, {filter_columns:11}
        FROM aiotasks_task AS task
        WHERE $2::text = 'ready' AND task.status = 'READY' AND task.backend = $1::text
          AND task.queue_name = $4::text AND task.lane = $5::text AND task.priority = $6::smallint
          AND task.ready_at >= to_timestamp($7::double precision) - interval '1 millisecond'
          AND task.ready_at <= to_timestamp($9::double precision)
          AND (date_part('epoch', task.ready_at), task.id) > ($7::double precision, $8::uuid)
        ORDER BY task.ready_at, task.id LIMIT $10::integer
    )
    UNION ALL
    (
        SELECT running.*
        FROM (
            SELECT 0, task.id, {filter_columns:11}
            FROM aiotasks_task AS task
            WHERE $2::text = 'running' AND task.status = 'RUNNING' AND task.backend = $1::text
              AND task.id > $8::uuid
            OFFSET 0
        ) AS running
        ORDER BY running.id LIMIT $10::integer
    )
    UNION ALL
    (
        SELECT date_part('epoch', task.finished_at), task.id, {filter_columns:11}
        FROM aiotasks_task AS task
        WHERE $2::text = 'finished' AND task.backend = $1::text AND task.status = $3::text
          AND task.finished_at IS NOT NULL AND task.keep_result IS NULL
          AND task.finished_at >= to_timestamp($7::double precision) - interval '1 millisecond'
          AND task.finished_at <= to_timestamp($9::double precision)
          AND (date_part('epoch', task.finished_at), task.id) > ($7::double precision, $8::uuid)
        ORDER BY task.finished_at, task.id LIMIT $10::integer
    )
    UNION ALL
    (
        SELECT date_part('epoch', task.finished_at AT TIME ZONE 'UTC') + task.keep_result, task.id,
               {filter_columns:11}
        FROM aiotasks_task AS task
        WHERE $2::text = 'kept' AND task.backend = $1::text AND task.status = $3::text
          AND task.finished_at IS NOT NULL AND task.keep_result IS NOT NULL
          AND date_part('epoch', task.finished_at AT TIME ZONE 'UTC') + task.keep_result >= $7::double precision
          AND task.finished_at <= to_timestamp($9::double precision)
          AND (date_part('epoch', task.finished_at AT TIME ZONE 'UTC') + task.keep_result, task.id)
              > ($7::double precision, $8::uuid)
        ORDER BY date_part('epoch', task.finished_at AT TIME ZONE 'UTC') + task.keep_result, task.id
        LIMIT $10::integer
    )
    UNION ALL
    (
        SELECT 0, task.id, {filter_columns:11}
        FROM aiotasks_task AS task
        WHERE $2::text = 'key' AND task.backend = $1::text AND task.unique_key = $13::text AND task.status = $3::text
    )
), last AS (
    SELECT seen.at, seen.id FROM seen ORDER BY seen.at DESC, seen.id DESC LIMIT 1
)
SELECT
    ARRAY(
        SELECT seen.id
        FROM seen
        WHERE {filter_applies:11}
    ),
    (SELECT last.at FROM last),
    (SELECT last.id FROM last),
    (SELECT count(*) FROM seen)
