-- Remove a schedule. Returns its name if there was one.
-- $1 backend, $2 name
DELETE FROM aiotasks_schedule AS schedule
WHERE schedule.backend = $1::text AND schedule.name = $2::text
RETURNING schedule.name
