-- What comes next. A scheduled task is due, or a pause is over, whose tasks can be started then: when that is, in how
-- many seconds by the database's clock (NULLs: neither), and when the next pause is over (NULL: there is none). And a
-- schedule ticks: when, and in how many seconds (NULLs: none does).
-- Times that Python can't hold are left out: 'infinity' never is due, and the next promotion takes '-infinity'.
-- $1 backend, $2 ids of scheduled tasks to leave out
SELECT
    next.at,
    extract(epoch FROM next.at - clock_timestamp())::double precision,
    next.pause_end,
    next.tick_at,
    extract(epoch FROM next.tick_at - clock_timestamp())::double precision
FROM (
    SELECT
        pause.ends AS pause_end,
        least(
            pause.ends,
            (
                SELECT task.run_after
                FROM aiotasks_task AS task
                WHERE task.status = 'SCHEDULED' AND task.backend = $1::text
                  AND task.id <> ALL($2::uuid[])
                  AND task.run_after BETWEEN '0002-01-01 00:00+00' AND '9998-01-01 00:00+00'
                ORDER BY task.run_after
                LIMIT 1
            )
        ) AS at,
        (
            SELECT greatest(schedule.next_at, schedule.retry_at)
            FROM aiotasks_schedule AS schedule
            WHERE schedule.backend = $1::text AND schedule.next_at IS NOT NULL
              AND schedule.next_at >= '1970-01-01 00:00+00'
              AND greatest(schedule.next_at, schedule.retry_at) < '9998-01-01 00:00+00'
            ORDER BY greatest(schedule.next_at, schedule.retry_at)
            LIMIT 1
        ) AS tick_at
    FROM (
        SELECT min(pause.until) AS ends
        FROM aiotasks_pause AS pause
        WHERE pause.backend = $1::text
          AND pause.until > statement_timestamp() AND pause.until < '9998-01-01 00:00+00'
    ) AS pause
) AS next
WHERE next.at IS NOT NULL OR next.tick_at IS NOT NULL
