-- What workers compare with the schedules of their code, and the time of the statement. One row of NULLs besides the
-- time if there are none. A next tick that Python can't hold is one in the year 9000.
-- $1 backend
SELECT
    clock.now, schedule.name, schedule.from_code, schedule.digest, schedule.declared_in, schedule.stopped_at IS NOT NULL,
    CASE
        WHEN schedule.next_at IS NOT NULL
            THEN least(greatest(schedule.next_at, '1970-01-01 00:00+00'), '9000-01-01 00:00+00')
    END
FROM (SELECT statement_timestamp() AS now) AS clock
LEFT JOIN aiotasks_schedule AS schedule ON schedule.backend = $1::text
