-- Mark tasks as awaited, so that whoever ends them tells of it, and see how they stand. A row that another
-- transaction has locked (it is being claimed or finished just now), or has changed just now, isn't waited for: it
-- isn't marked, and to be asked for again. One that is marked already isn't written. The lock makes this exact:
-- whoever ends a task sees the mark, or the mark sees the end.
-- The mark needn't survive a crash of the server, because everybody asks again after that.
-- Returns one row: the ids of the tasks that have ended, of those that haven't and are marked, and of the others that
-- are there (NULL: none).
-- $1 ids (sorted), $2 backend, $3 what is awaited: 1 the end, 2 each change
WITH quick AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true) AS off),
found AS MATERIALIZED (
    SELECT task.id, task.finished_at IS NOT NULL AS has_ended, coalesce(task.awaited >= $3::smallint, false) AS is_marked
    FROM quick
    CROSS JOIN unnest($1::uuid[]) AS asked (id)
    CROSS JOIN LATERAL (
        SELECT each.id, each.finished_at, each.awaited
        FROM aiotasks_task AS each
        WHERE each.id = asked.id AND each.backend = $2::text
        OFFSET 0
    ) AS task
), free AS MATERIALIZED (
    SELECT held.ctid AS place
    FROM found
    CROSS JOIN LATERAL (
        SELECT task.ctid
        FROM aiotasks_task AS task
        WHERE task.id = found.id AND task.finished_at IS NULL
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS held
    WHERE NOT found.has_ended AND NOT found.is_marked
), marked AS (
    UPDATE aiotasks_task AS task
    SET awaited = $3::smallint
    FROM free
    WHERE task.ctid = free.place
    RETURNING task.id
)
SELECT
    array_agg(found.id) FILTER (WHERE found.has_ended),
    array_agg(found.id) FILTER (WHERE NOT found.has_ended AND found.is_marked)
        || (SELECT array_agg(marked.id) FROM marked),
    array_agg(found.id) FILTER (WHERE NOT found.has_ended AND NOT found.is_marked)
FROM found
