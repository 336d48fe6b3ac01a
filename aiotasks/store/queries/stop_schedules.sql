-- Stop schedules that the code of a worker doesn't declare, unless another live worker has told that its code does.
-- Their rows stay, with the tick that they waited for: another release may declare them again.
-- Returns the names, and whether each was stopped: somebody may have locked its row, as a worker does that ticks it.
-- $1 backend, $2 names
WITH gone AS MATERIALIZED (
    SELECT found.id, found.name
    FROM aiotasks_schedule AS found
    WHERE found.backend = $1::text AND found.name = ANY($2::text[]) AND found.from_code AND found.stopped_at IS NULL
      AND NOT EXISTS (
          SELECT FROM aiotasks_worker AS worker
          WHERE worker.backend = $1::text AND worker.lease_expires_at > statement_timestamp()
            AND found.name = ANY(worker.schedules)
      )
), stopped AS (
    UPDATE aiotasks_schedule AS schedule
    SET stopped_at = statement_timestamp(), stopped_tick = schedule.next_at, next_at = NULL, retry_at = NULL
    WHERE schedule.id = ANY(ARRAY(
        SELECT held.id
        FROM aiotasks_schedule AS held
        WHERE held.id = ANY(ARRAY(SELECT gone.id FROM gone)) AND held.stopped_at IS NULL
        FOR UPDATE SKIP LOCKED
    ))
    RETURNING schedule.id
)
SELECT gone.name, EXISTS (SELECT FROM stopped WHERE stopped.id = gone.id)
FROM gone
