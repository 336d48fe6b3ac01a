-- Have a paused schedule tick again; one that the code has no more only once it has it again.
-- $1 backend, $2 name, $3 the next tick (NULL: there is none)
UPDATE aiotasks_schedule AS schedule
SET paused_at = NULL, pause_reason = NULL, failures = 0, error = NULL,
    next_at = CASE WHEN schedule.stopped_at IS NULL THEN $3::timestamptz END
WHERE schedule.backend = $1::text AND schedule.name = $2::text AND schedule.paused_at IS NOT NULL
RETURNING schedule.name
