-- Remove the rows of workers whose lease has expired and whom no task names any more.
-- $1 backend
DELETE FROM aiotasks_worker AS worker
WHERE worker.id IN (
    SELECT dead.id
    FROM aiotasks_worker AS dead
    WHERE dead.backend = $1::text AND dead.lease_expires_at < clock_timestamp()
      AND NOT EXISTS (
          SELECT FROM aiotasks_task AS task
          WHERE task.status = 'RUNNING' AND task.worker_id = dead.id
      )
    ORDER BY dead.id
    FOR UPDATE SKIP LOCKED
)
RETURNING worker.id
