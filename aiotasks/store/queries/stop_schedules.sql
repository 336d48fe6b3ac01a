-- Stop schedules that the code of a worker doesn't declare, unless another live worker has told that its code does.
-- Their rows stay, with the tick that they waited for: another release may declare them again.
-- Returns the names of those stopped.
-- $1 backend, $2 names
UPDATE aiotasks_schedule AS schedule
SET stopped_at = statement_timestamp(), stopped_tick = schedule.next_at, next_at = NULL, retry_at = NULL
WHERE schedule.id = ANY(ARRAY(
    SELECT found.id
    FROM aiotasks_schedule AS found
    WHERE found.backend = $1::text AND found.name = ANY($2::text[]) AND found.from_code AND found.stopped_at IS NULL
      AND NOT EXISTS (
          SELECT FROM aiotasks_worker AS worker
          WHERE worker.backend = $1::text AND worker.lease_expires_at > statement_timestamp()
            AND found.name = ANY(worker.schedules)
      )
    FOR UPDATE SKIP LOCKED
))
RETURNING schedule.name
