-- Remove the rows of workers whose lease has expired and whom no task names any more.
-- Planned anew every time: see claim_jobs.sql.
-- $1 backend
DELETE FROM aiotasks_worker AS worker
WHERE worker.id IN (
    SELECT dead.id
    FROM aiotasks_worker AS dead
    WHERE dead.backend = $1::text AND dead.lease_expires_at < clock_timestamp()
      AND ($1::text IS NOT NULL OR (SELECT count(*) FROM generate_series(1, 1000000000)) > 0)
      AND NOT EXISTS (
          SELECT FROM aiotasks_task AS task
          WHERE task.status = 'RUNNING' AND task.worker_id = dead.id
      )
    ORDER BY dead.id
    FOR UPDATE SKIP LOCKED
)
RETURNING worker.id
