-- Schedules by their names, each after the time of the statement; one row of NULLs besides the time if there are none.
-- $1 backend, $2 names (NULL: all)
SELECT
    clock.now, schedule.from_code, schedule.pause_reason, schedule.skipped, schedule.failures, schedule.error,
    {schedule_times}, {schedule_columns}
FROM (SELECT statement_timestamp() AS now) AS clock
LEFT JOIN aiotasks_schedule AS schedule
    ON schedule.backend = $1::text AND ($2::text[] IS NULL OR schedule.name = ANY($2::text[]))
ORDER BY schedule.name
