-- Of tasks that a bulk action's statement has left: whether they are still meant, and so were locked, and whether
-- another task has taken their unique key.
-- $1 ids, $2 to $7 which are meant (see columns.py)
SELECT task.id, ({is_meant}) IS TRUE, task.unique_key IS NULL AND task.former_key IS NOT NULL
FROM aiotasks_task AS task
WHERE task.id = ANY($1::uuid[]) AND task.backend = $2::text
