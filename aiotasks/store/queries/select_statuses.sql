-- The statuses of tasks, of those that are there.
-- $1 ids, $2 backend
SELECT task.id, task.status
FROM aiotasks_task AS task
WHERE task.id = ANY($1::uuid[]) AND task.backend = $2::text
