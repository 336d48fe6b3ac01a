-- Look tasks up by id.
-- $1 ids, $2 backend
SELECT
    {job_columns}
FROM aiotasks_task AS task
WHERE task.id = ANY($1::uuid[]) AND task.backend = $2::text
