-- Resume a queue or a task. Returns whether it was paused.
-- $1 backend, $2 kind, $3 name
DELETE FROM aiotasks_pause AS pause
WHERE pause.backend = $1::text AND pause.kind = $2::text AND pause.name = $3::text
RETURNING pause.until IS NULL OR pause.until > statement_timestamp()
