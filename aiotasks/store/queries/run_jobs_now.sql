-- Make SCHEDULED tasks READY before their time, those alone that no other transaction has locked, and that are still
-- meant. A task gets the place in its queue of one that has just been enqueued; in the line of its limit's key it keeps
-- an earlier one. What its caller has asked for moves to asked_run_after, as in release_jobs.
-- Returns id, queue name, and lane.
-- $1 ids, $2 to $7 which are meant (see columns.py): $3 is SCHEDULED alone
WITH held AS MATERIALIZED (
    SELECT found.ctid AS place
    FROM unnest($1::uuid[]) AS wanted (id)
    CROSS JOIN LATERAL (
        SELECT task.ctid
        FROM aiotasks_task AS task
        WHERE task.id = wanted.id AND {is_meant}
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS found
)
UPDATE aiotasks_task AS task
SET status = 'READY',
    run_after = statement_timestamp(),
    asked_run_after = coalesce(task.asked_run_after, task.run_after, 'epoch'),
    ready_at = clock_timestamp(),
    limit_place = CASE
        WHEN task.limit_place IS NOT NULL THEN least(task.limit_place, statement_timestamp())
    END
FROM held
WHERE task.ctid = held.place
RETURNING task.id, task.queue_name, task.lane
