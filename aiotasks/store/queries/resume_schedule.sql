-- Have a paused schedule tick again, if its times are those that its next tick was computed by; one that no code
-- declares only once it is declared again, then from this tick on.
-- $1 backend, $2 name, $3 the next tick (NULL: there is none), by the $4 expression and the $5 time zone
UPDATE aiotasks_schedule AS schedule
SET paused_at = NULL, pause_reason = NULL, failures = 0, error = NULL,
    next_at = CASE WHEN schedule.stopped_at IS NULL THEN $3::timestamptz END,
    stopped_tick = CASE WHEN schedule.stopped_at IS NOT NULL THEN $3::timestamptz END
WHERE schedule.backend = $1::text AND schedule.name = $2::text AND schedule.paused_at IS NOT NULL
  AND schedule.expression = $4::text AND schedule.timezone = $5::text
RETURNING schedule.name
