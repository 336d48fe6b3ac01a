-- Note errors on schedules whose ticks couldn't be enqueued, and have them tried again later, each time after twice
-- as long. Not if another worker has noted it, or has moved the schedule on, or has locked it for that.
-- Returns the names, and how often each has failed in a row.
-- $1 backend, $2 names, and of each: $3 the next_at that was read, $4 the error (NULL: it is no failure);
-- $5 seconds until the second try, $6 until any other at the most
WITH mine AS MATERIALIZED (
    SELECT found.id, given.error
    FROM unnest($2::text[], $3::timestamptz[], $4::text[]) AS given (name, seen_at, error)
    -- As in move_schedules.
    CROSS JOIN LATERAL (
        SELECT schedule.id
        FROM aiotasks_schedule AS schedule
        WHERE schedule.backend = $1::text AND schedule.name = given.name
          AND schedule.next_at IS NOT DISTINCT FROM given.seen_at
          AND coalesce(schedule.retry_at, 'epoch') <= statement_timestamp()
        FOR UPDATE SKIP LOCKED
    ) AS found
)
UPDATE aiotasks_schedule AS schedule
SET failures = least(schedule.failures, 1000000) + CASE WHEN mine.error IS NULL THEN 0 ELSE 1 END,
    error = coalesce(mine.error, schedule.error),
    retry_at = statement_timestamp() + make_interval(
        secs => least($6::double precision, $5::double precision * 2.0::double precision ^ least(schedule.failures, 20))
    )
FROM mine
WHERE schedule.id = mine.id
RETURNING schedule.name, schedule.failures
