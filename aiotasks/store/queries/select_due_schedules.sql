-- Schedules whose tick has come, the earliest first, and the time of the statement. Locks nothing: move_schedules
-- decides which worker's each of them is. Times that Python can't hold never come.
-- $1 backend, $2 how many at the most
SELECT
    statement_timestamp(), schedule.name, schedule.expression, schedule.timezone, schedule.missed, schedule.missed_within,
    schedule.next_at, schedule.failures,
    (schedule.overlap IS NULL AND schedule.unique_key IS NOT NULL) OR schedule.retry_at IS NOT NULL,
    octet_length(schedule.args::text) + octet_length(schedule.kwargs::text)
        + coalesce(octet_length(schedule.metadata::text), 0)
FROM aiotasks_schedule AS schedule
WHERE schedule.backend = $1::text AND schedule.next_at IS NOT NULL AND schedule.next_at >= '1970-01-01 00:00+00'
  AND greatest(schedule.next_at, schedule.retry_at) <= statement_timestamp()
ORDER BY greatest(schedule.next_at, schedule.retry_at)
LIMIT $2::integer
