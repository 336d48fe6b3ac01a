-- A page of a list of tasks, along one index: the next tasks behind a place, of which those count that a filter is for.
-- A statement looks at so many rows at most, so that none takes long, whatever the filter leaves out. Only one branch
-- is run: the conditions on $2 of the others are false before a row is read. Newest first, but for 'scheduled':
-- - newest: all tasks by id, which begins with the time of the enqueue (several backends may share the table)
-- - finished: those of one status without a keep_result; kept: those with one. The index of the latter is ordered by
--   the end of that time, so its first $12 rows are taken and sorted.
-- - ready: the first rows of each of some queues, lanes and priorities, merged
-- - scheduled: by when they are due; running: by their last start (OFFSET 0: they are few, and all are read)
-- - key: the task with the unique key
-- Places are epoch seconds, as in walk_jobs; those of 'newest' are 0.
-- Returns one row: the ids of the tasks that the filter is for, and their places; the place of the last row that was
-- looked at (NULLs: there was none); how many rows those were; and whether there are more with a keep_result than $12.
-- $1 backend, $2 branch, $3 statuses (NULL: any), $4 queue names, $5 lanes, $6 priorities, where to begin behind: $7
-- epoch seconds, $8 id; where it ends: $9 epoch seconds of finished tasks, $10 id of the newest; $11 how many to look
-- at, $12 of those with a keep_result, from $13 on the filter (see filtering.py)
WITH kept AS MATERIALIZED (
    SELECT date_part('epoch', task.finished_at) AS at, task.id, task.status
    FROM aiotasks_task AS task
    WHERE $2::text = 'kept' AND task.backend = $1::text
      AND task.finished_at IS NOT NULL AND task.keep_result IS NOT NULL
    ORDER BY date_part('epoch', task.finished_at AT TIME ZONE 'UTC') + task.keep_result DESC
    LIMIT $12::integer
), seen AS MATERIALIZED (
    (
        SELECT 0::double precision AS at, task.id, task.backend, task.status, {filter_columns:13}
        FROM aiotasks_task AS task
        WHERE $2::text = 'newest' AND task.id < $8::uuid AND task.id >= $10::uuid
        ORDER BY task.id DESC LIMIT $11::integer
    )
    UNION ALL
    (
        SELECT date_part('epoch', task.finished_at), task.id, task.backend, task.status, {filter_columns:13}
        FROM aiotasks_task AS task
        WHERE $2::text = 'finished' AND task.backend = $1::text AND task.status = ($3::text[])[1]
          AND task.finished_at IS NOT NULL AND task.keep_result IS NULL
          AND task.finished_at <= to_timestamp($7::double precision) + interval '1 millisecond'
          AND task.finished_at >= to_timestamp($9::double precision)
          AND (date_part('epoch', task.finished_at), task.id) < ($7::double precision, $8::uuid)
        ORDER BY task.finished_at DESC, task.id DESC LIMIT $11::integer
    )
    UNION ALL
    (
        SELECT first.at, task.id, task.backend, task.status, {filter_columns:13}
        FROM (
            SELECT kept.at, kept.id FROM kept
            WHERE kept.status = ANY($3::text[]) AND kept.at >= $9::double precision
              AND (kept.at, kept.id) < ($7::double precision, $8::uuid)
            ORDER BY kept.at DESC, kept.id DESC LIMIT $11::integer
        ) AS first
        CROSS JOIN LATERAL (SELECT * FROM aiotasks_task AS one WHERE one.id = first.id LIMIT 1) AS task
    )
    UNION ALL
    (
        SELECT date_part('epoch', task.ready_at), task.id, task.backend, task.status, {filter_columns:13}
        FROM unnest($4::text[], $5::text[], $6::smallint[]) AS leg (queue_name, lane, priority)
        CROSS JOIN LATERAL (
            SELECT * FROM aiotasks_task AS one
            WHERE $2::text = 'ready' AND one.status = 'READY' AND one.backend = $1::text
              AND one.queue_name = leg.queue_name AND one.lane = leg.lane AND one.priority = leg.priority
              AND one.ready_at <= to_timestamp($7::double precision) + interval '1 millisecond'
              AND (date_part('epoch', one.ready_at), one.id) < ($7::double precision, $8::uuid)
            ORDER BY one.ready_at DESC, one.id DESC LIMIT $11::integer
        ) AS task
        ORDER BY task.ready_at DESC, task.id DESC LIMIT $11::integer
    )
    UNION ALL
    (
        SELECT date_part('epoch', task.run_after), task.id, task.backend, task.status, {filter_columns:13}
        FROM aiotasks_task AS task
        WHERE $2::text = 'scheduled' AND task.status = 'SCHEDULED' AND task.backend = $1::text
          AND task.run_after >= to_timestamp($7::double precision) - interval '1 millisecond'
          AND (date_part('epoch', task.run_after), task.id) > ($7::double precision, $8::uuid)
        ORDER BY task.run_after, task.id LIMIT $11::integer
    )
    UNION ALL
    (
        SELECT running.*
        FROM (
            SELECT coalesce(date_part('epoch', task.last_attempted_at), 0), task.id, task.backend, task.status,
                {filter_columns:13}
            FROM aiotasks_task AS task
            WHERE $2::text = 'running' AND task.status = 'RUNNING' AND task.backend = $1::text
            OFFSET 0
        ) AS running (at, id)
        WHERE (running.at, running.id) < ($7::double precision, $8::uuid)
        ORDER BY running.at DESC, running.id DESC LIMIT $11::integer
    )
    UNION ALL
    (
        SELECT 0, task.id, task.backend, task.status, {filter_columns:13}
        FROM aiotasks_task AS task
        WHERE $2::text = 'key' AND task.backend = $1::text AND task.unique_key = $15::text AND task.id < $8::uuid
    )
), chosen AS (
    SELECT seen.at, seen.id
    FROM seen
    WHERE seen.backend = $1::text AND ($3::text[] IS NULL OR seen.status = ANY($3::text[]))
      AND {filter_applies:13}
), last AS (
    SELECT seen.at, seen.id
    FROM seen
    ORDER BY
        CASE WHEN $2::text = 'scheduled' THEN seen.at END DESC, CASE WHEN $2::text = 'scheduled' THEN seen.id END DESC,
        seen.at, seen.id
    LIMIT 1
)
SELECT
    ARRAY(SELECT chosen.id FROM chosen),
    ARRAY(SELECT chosen.at FROM chosen),
    (SELECT last.at FROM last),
    (SELECT last.id FROM last),
    (SELECT count(*) FROM seen),
    (SELECT count(*) FROM kept) >= $12::integer
