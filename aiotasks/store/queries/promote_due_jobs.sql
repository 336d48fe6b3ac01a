-- Make scheduled tasks READY whose time has come. (Not clock_timestamp(): what is volatile can't bound
-- an index scan, and every task that is scheduled for some day would be read.)
-- $1 backend, $2 how many at the most
UPDATE aiotasks_task AS task
SET status = 'READY', ready_at = clock_timestamp()
WHERE task.ctid = ANY(ARRAY(
    SELECT due.ctid
    FROM aiotasks_task AS due
    WHERE due.status = 'SCHEDULED' AND due.backend = $1::text AND due.run_after <= statement_timestamp()
    ORDER BY due.run_after
    LIMIT $2::integer
    FOR UPDATE SKIP LOCKED
))
RETURNING task.queue_name
