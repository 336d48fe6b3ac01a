-- Delete tasks, those alone that no other transaction has locked, and that are still meant.
-- Returns id, and whether somebody awaits the task.
-- $1 ids, $2 to $7 which are meant (see columns.py)
WITH held AS MATERIALIZED (
    SELECT found.ctid AS place
    FROM unnest($1::uuid[]) AS wanted (id)
    CROSS JOIN LATERAL (
        SELECT task.ctid
        FROM aiotasks_task AS task
        WHERE task.id = wanted.id AND {is_meant}
        FOR UPDATE SKIP LOCKED
    ) AS found
)
DELETE FROM aiotasks_task AS task
USING held
WHERE task.ctid = held.place
RETURNING task.id, task.awaited IS NOT NULL AND task.finished_at IS NULL
