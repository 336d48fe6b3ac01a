-- Move schedules on to their next ticks, unless another worker has done so since they were read, or is about to: then
-- their rows are locked. The worker whose transaction has moved a schedule stores the tasks of its ticks in it.
-- Returns the schedules that were moved.
-- $1 backend, $2 names, and of each: $3 the next_at, $4 the expression and $5 the time zone that were read,
-- $6 the next tick (NULL: there is none), $7 the last tick that is done with this (NULL: none)
WITH mine AS MATERIALIZED (
    SELECT found.id, given.next_at, given.last_tick
    FROM unnest($2::text[], $3::timestamptz[], $4::text[], $5::text[], $6::timestamptz[], $7::timestamptz[])
        AS given (name, seen_at, expression, timezone, next_at, last_tick)
    -- One look-up after the other: a join would read the index of all schedules.
    CROSS JOIN LATERAL (
        SELECT schedule.id
        FROM aiotasks_schedule AS schedule
        WHERE schedule.backend = $1::text AND schedule.name = given.name
          -- Not by `=`: while the table is small the index of those that have a next_at seems to be as good.
          AND schedule.next_at IS NOT DISTINCT FROM given.seen_at
          AND schedule.expression = given.expression AND schedule.timezone = given.timezone
        FOR UPDATE SKIP LOCKED
    ) AS found
)
UPDATE aiotasks_schedule AS schedule
SET next_at = mine.next_at,
    last_tick = coalesce(mine.last_tick, schedule.last_tick),
    retry_at = NULL,
    failures = 0,
    error = NULL
FROM mine
WHERE schedule.id = mine.id
RETURNING {schedule_columns}
