-- Make scheduled tasks READY that are due. (Not by clock_timestamp(): a volatile function can't bound an index
-- scan, so every scheduled task would be read.)
-- A task's place in its queue follows from the time that it was due, so that tasks start in the order of their
-- run_after, however late they are promoted, and by however many workers. (Claims read nothing before 1970, so a
-- task that is scheduled for -infinity gets a place in 1970.)
-- Returns each task's queue and lane, and its place in epoch seconds.
-- $1 backend, $2 how many at the most, $3 ids of the only ones (NULL: all that are due), $4 ids to leave out
UPDATE aiotasks_task AS task
SET status = 'READY', ready_at = greatest(task.run_after, 'epoch')
WHERE task.ctid = ANY(ARRAY(
    SELECT due.ctid
    FROM aiotasks_task AS due
    WHERE due.status = 'SCHEDULED' AND due.backend = $1::text AND due.run_after <= statement_timestamp()
      AND ($3::uuid[] IS NULL OR due.id = ANY($3::uuid[])) AND due.id <> ALL($4::uuid[])
    ORDER BY due.run_after
    LIMIT $2::integer
    FOR UPDATE SKIP LOCKED
))
RETURNING task.queue_name, extract(epoch FROM task.ready_at)::double precision, task.lane
