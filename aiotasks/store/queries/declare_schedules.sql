-- Add schedules, or bring those of the code up to what it declares; what is as it was isn't written, and a schedule
-- that an operator has added isn't touched. One whose times have changed begins at the next_at that is given; a
-- paused one stays paused.
-- Returns the names of those written, and their next_at.
-- $1 backend, $2 whether the code declares them, $3 digests, $4 next_at, from $5 on what they are
INSERT INTO aiotasks_schedule AS schedule (
    backend, from_code, digest, next_at, skipped, failures, {schedule_names}
)
SELECT $1::text, $2::boolean, digest, next_at, 0, 0, {schedule_names}
FROM unnest($3::text[], $4::timestamptz[], {schedule_arrays:5}) AS new (digest, next_at, {schedule_names})
ORDER BY name
ON CONFLICT (backend, name) DO UPDATE
SET {schedule_changes},
    digest = excluded.digest,
    stopped_at = NULL,
    retry_at = NULL,
    failures = 0,
    error = NULL,
    next_at = CASE
        WHEN schedule.paused_at IS NOT NULL THEN NULL
        WHEN schedule.next_at IS NOT NULL
            AND (schedule.expression, schedule.timezone) = (excluded.expression, excluded.timezone)
            THEN schedule.next_at
        ELSE excluded.next_at
    END
WHERE schedule.from_code AND excluded.from_code
  AND (schedule.digest IS DISTINCT FROM excluded.digest OR schedule.stopped_at IS NOT NULL)
RETURNING schedule.name, schedule.next_at
