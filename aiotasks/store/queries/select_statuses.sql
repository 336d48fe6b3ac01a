-- The statuses of tasks, of those that are there, and whether another task has taken their unique key.
-- $1 ids, $2 backend
SELECT task.id, task.status, task.unique_key IS NULL AND task.former_key IS NOT NULL
FROM aiotasks_task AS task
WHERE task.id = ANY($1::uuid[]) AND task.backend = $2::text
