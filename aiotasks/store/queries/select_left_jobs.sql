-- Of tasks that a bulk action's statement has left: whether they are still meant, and so were locked, whether another
-- task has taken their unique key, and which one holds it now.
-- $1 ids, $2 to $7 which are meant (see columns.py)
SELECT found.id, found.is_meant, found.lost_key IS NOT NULL, (
    SELECT task.id
    FROM aiotasks_task AS task
    WHERE task.backend = $2::text AND task.unique_key = found.lost_key AND NOT {key_is_free}
)
FROM (
    SELECT
        task.id, ({is_meant}) IS TRUE AS is_meant,
        CASE WHEN task.unique_key IS NULL THEN task.former_key END AS lost_key
    FROM aiotasks_task AS task
    WHERE task.id = ANY($1::uuid[]) AND task.backend = $2::text
) AS found
