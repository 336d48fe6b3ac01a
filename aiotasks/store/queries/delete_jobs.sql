-- Delete tasks, those alone that no other transaction has locked, and that have one of these statuses.
-- $1 ids, $2 backend, $3 statuses
WITH held AS MATERIALIZED (
    SELECT found.ctid AS place
    FROM unnest($1::uuid[]) AS wanted (id)
    CROSS JOIN LATERAL (
        SELECT task.ctid
        FROM aiotasks_task AS task
        WHERE task.id = wanted.id AND task.backend = $2::text AND task.status || '' = ANY($3::text[])
        FOR UPDATE SKIP LOCKED
    ) AS found
)
DELETE FROM aiotasks_task AS task
USING held
WHERE task.ctid = held.place
RETURNING task.id
