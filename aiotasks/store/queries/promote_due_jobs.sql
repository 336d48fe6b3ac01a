-- Make scheduled tasks READY whose time has come. (Not clock_timestamp(): what is volatile can't bound
-- an index scan, and every task that is scheduled for some day would be read.)
-- A task's place in its queue is by the time that it was due at, so that tasks start in the order of their
-- run_after however late, and by however many workers, they are promoted. (Claims look at nothing before
-- 1970, so what somebody has scheduled for -infinity is from then.)
-- Returned is each task's queue, and its place in epoch seconds.
-- $1 backend, $2 how many at the most
UPDATE aiotasks_task AS task
SET status = 'READY', ready_at = greatest(task.run_after, 'epoch')
WHERE task.ctid = ANY(ARRAY(
    SELECT due.ctid
    FROM aiotasks_task AS due
    WHERE due.status = 'SCHEDULED' AND due.backend = $1::text AND due.run_after <= statement_timestamp()
    ORDER BY due.run_after
    LIMIT $2::integer
    FOR UPDATE SKIP LOCKED
))
RETURNING task.queue_name, extract(epoch FROM task.ready_at)::double precision
