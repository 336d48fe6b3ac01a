-- Which tasks have ended: for those that wait for it and can't, or needn't, mark the tasks (await_jobs).
-- Returns one row: the ids of the tasks that have ended, and of the others that are there (NULL: none).
-- $1 ids, $2 backend
SELECT
    array_agg(found.id) FILTER (WHERE found.finished_at IS NOT NULL),
    array_agg(found.id) FILTER (WHERE found.finished_at IS NULL)
FROM unnest($1::uuid[]) AS asked (id)
CROSS JOIN LATERAL (
    SELECT task.id, task.finished_at
    FROM aiotasks_task AS task
    WHERE task.id = asked.id AND task.backend = $2::text
    OFFSET 0
) AS found
