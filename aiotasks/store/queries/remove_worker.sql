-- Remove a worker's row: its last statement, after all its tasks are finished or released.
-- $1 worker id
DELETE FROM aiotasks_worker
WHERE id = $1::uuid
