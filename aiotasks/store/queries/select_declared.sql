-- What workers compare with the schedules of their code, and the time of the statement. One row of NULLs besides the
-- time if there are none.
-- $1 backend
SELECT
    clock.now, schedule.name, schedule.from_code, schedule.digest, schedule.expression, schedule.timezone,
    schedule.stopped_at IS NOT NULL,
    CASE
        WHEN schedule.stopped_at BETWEEN clock.now - interval '1 day' AND clock.now THEN schedule.stopped_at
    END
FROM (SELECT statement_timestamp() AS now) AS clock
LEFT JOIN aiotasks_schedule AS schedule ON schedule.backend = $1::text
