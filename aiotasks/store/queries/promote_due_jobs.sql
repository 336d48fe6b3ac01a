-- Make scheduled tasks READY whose time has come. (Not clock_timestamp(): what is volatile can't bound
-- an index scan, and every task that is scheduled for some day would be read.)
-- $1 backend, $2 how many at the most
WITH due AS (
    SELECT task.id
    FROM aiotasks_task AS task
    WHERE task.status = 'SCHEDULED' AND task.backend = $1::text AND task.run_after <= statement_timestamp()
    ORDER BY task.run_after
    LIMIT $2::integer
    FOR UPDATE SKIP LOCKED
)
UPDATE aiotasks_task AS task
SET status = 'READY', ready_at = clock_timestamp()
FROM due
WHERE task.id = due.id
RETURNING task.queue_name
