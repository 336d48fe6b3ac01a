-- Remove the rows of workers whose lease has expired and whose id no RUNNING task has; after a day also rows of
-- other backends, because an alias that has gone from TASKS has no worker left to do it.
-- Only for a worker whose own lease is live, as in rescue_jobs, or for an operator.
-- $1 backend, $2 the id of the worker that asks (NULL: an operator)
DELETE FROM aiotasks_worker AS worker
WHERE worker.id IN (
    SELECT dead.id
    FROM aiotasks_worker AS dead
    WHERE dead.lease_expires_at
          < clock_timestamp() - CASE WHEN dead.backend = $1::text THEN interval '0' ELSE interval '1 day' END
      AND ($2::uuid IS NULL OR EXISTS (
          SELECT FROM aiotasks_worker AS mine
          WHERE mine.id = $2::uuid AND mine.lease_expires_at > clock_timestamp()
      ))
      AND NOT EXISTS (
          SELECT FROM aiotasks_task AS task
          WHERE task.status = 'RUNNING' AND task.worker_id = dead.id
      )
    ORDER BY dead.id
    FOR UPDATE SKIP LOCKED
)
RETURNING worker.id
