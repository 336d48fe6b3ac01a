-- Add schedules, or bring those of the code up to what it declares; what is as it was isn't written, and a schedule
-- that an operator has added isn't touched. A paused one stays paused. A tick that has come and isn't enqueued yet
-- stays due, whatever the times are now. Else a schedule whose times have changed begins at the next_at that is given;
-- so does one whose own is more than a day behind that, because the clock was ahead when it was computed. One that was
-- stopped less than ten minutes ago goes on with the tick that it waited for: two releases may declare and stop it by
-- turns.
-- Returns the names of those written, and their next_at.
-- $1 backend, $2 whether the code declares them, $3 digests, $4 modules that declare them, $5 next_at,
-- from $6 on what they are
INSERT INTO aiotasks_schedule AS schedule (
    backend, from_code, digest, declared_in, next_at, skipped, failures, {schedule_names}
)
SELECT $1::text, $2::boolean, digest, declared_in, next_at, 0, 0, {schedule_names}
FROM unnest($3::text[], $4::text[], $5::timestamptz[], {schedule_arrays:6})
    AS new (digest, declared_in, next_at, {schedule_names})
ORDER BY name
ON CONFLICT (backend, name) DO UPDATE
SET {schedule_changes},
    digest = excluded.digest,
    declared_in = excluded.declared_in,
    stopped_at = NULL,
    stopped_tick = NULL,
    (retry_at, failures, error) = (
        -- What may be the reason of a failure has changed.
        SELECT
            CASE WHEN same.call THEN schedule.retry_at END,
            CASE WHEN same.call THEN schedule.failures ELSE 0 END,
            CASE WHEN same.call THEN schedule.error END
        FROM (
            SELECT (schedule.expression, schedule.timezone, schedule.task_path, schedule.args::text, schedule.kwargs::text)
                = (excluded.expression, excluded.timezone, excluded.task_path, excluded.args::text, excluded.kwargs::text)
        ) AS same (call)
    ),
    next_at = (
        SELECT CASE
            WHEN schedule.paused_at IS NOT NULL THEN NULL
            WHEN awaited.tick <= coalesce(schedule.stopped_at, statement_timestamp()) THEN awaited.tick
            WHEN (schedule.expression, schedule.timezone) <> (excluded.expression, excluded.timezone) THEN excluded.next_at
            WHEN awaited.tick > excluded.next_at + interval '1 day' AND excluded.next_at > statement_timestamp()
                THEN excluded.next_at
            ELSE coalesce(awaited.tick, excluded.next_at)
        END
        FROM (
            SELECT CASE
                WHEN schedule.stopped_at IS NULL THEN schedule.next_at
                WHEN schedule.stopped_at BETWEEN statement_timestamp() - interval '10 minutes' AND statement_timestamp()
                    THEN schedule.stopped_tick
            END
        ) AS awaited (tick)
    )
WHERE schedule.from_code AND excluded.from_code
  AND (
      schedule.digest IS DISTINCT FROM excluded.digest
      OR schedule.declared_in IS DISTINCT FROM excluded.declared_in
      OR schedule.stopped_at IS NOT NULL
      OR (schedule.next_at > excluded.next_at + interval '1 day' AND excluded.next_at > statement_timestamp())
  )
RETURNING schedule.name, schedule.next_at
