-- Write the metadata of a task, in whatever state, if they still are what the caller has read. No row: they aren't,
-- or there is no such task. A row that another transaction has locked is waited for, and looked at again then.
-- $1 id, $2 backend, $3 metadata (JSON text or NULL), $4 what the caller has read (likewise)
UPDATE aiotasks_task AS task
SET metadata = $3::text::json
WHERE task.id = $1::uuid AND task.backend = $2::text AND task.metadata::text IS NOT DISTINCT FROM $4::text
RETURNING task.awaited
