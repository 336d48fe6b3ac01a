-- Note on schedules that ticks were left out, because other tasks hold the keys of theirs. The caller's transaction has
-- moved the schedules on.
-- $1 backend, $2 names, and of each: $3 the last such tick, $4 how many there were
WITH mine AS MATERIALIZED (
    SELECT found.id, given.tick, given.number
    FROM unnest($2::text[], $3::timestamptz[], $4::integer[]) AS given (name, tick, number)
    -- As in move_schedules.
    CROSS JOIN LATERAL (
        SELECT schedule.id
        FROM aiotasks_schedule AS schedule
        WHERE schedule.backend = $1::text AND schedule.name = given.name
        FOR UPDATE
    ) AS found
)
UPDATE aiotasks_schedule AS schedule
SET skipped_tick = mine.tick, skipped = schedule.skipped + mine.number
FROM mine
WHERE schedule.id = mine.id
