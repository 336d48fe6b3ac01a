-- Stop schedules of the code that the code has no more. Their rows stay: another release may declare them again.
-- Returns the names of those stopped.
-- $1 backend, $2 names
UPDATE aiotasks_schedule AS schedule
SET stopped_at = statement_timestamp(), next_at = NULL, retry_at = NULL
WHERE schedule.id = ANY(ARRAY(
    SELECT found.id
    FROM aiotasks_schedule AS found
    WHERE found.backend = $1::text AND found.name = ANY($2::text[]) AND found.from_code AND found.stopped_at IS NULL
    FOR UPDATE SKIP LOCKED
))
RETURNING schedule.name
