-- Have a schedule tick no more until it is resumed. Of one that is paused already, the reason changes.
-- $1 backend, $2 name, $3 reason
UPDATE aiotasks_schedule AS schedule
SET paused_at = coalesce(schedule.paused_at, statement_timestamp()), pause_reason = $3::text,
    next_at = NULL, retry_at = NULL, stopped_tick = NULL
WHERE schedule.backend = $1::text AND schedule.name = $2::text
RETURNING schedule.name
