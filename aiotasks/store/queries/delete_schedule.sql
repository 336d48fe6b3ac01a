-- Remove a schedule, unless the code declares it. Returns its name if there was one.
-- $1 backend, $2 name
DELETE FROM aiotasks_schedule AS schedule
WHERE schedule.backend = $1::text AND schedule.name = $2::text
  AND (NOT schedule.from_code OR schedule.stopped_at IS NOT NULL)
RETURNING schedule.name
