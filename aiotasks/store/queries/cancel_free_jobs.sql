-- Cancel tasks as cancel_jobs does, but those alone that no other transaction has locked, and that are still meant.
-- LATERAL and ctid as in finish_jobs: a row that was changed just before it could be locked is left, too.
-- Returns id, queue name, whether the task runs, and whether it has ended and somebody awaits that.
-- $1 ids, $2 to $7 which are meant (see columns.py), $8 the error to store (JSON text)
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
SET status = CASE WHEN task.status = 'RUNNING' THEN 'RUNNING' ELSE 'FAILED' END,
    errors = CASE WHEN task.status = 'RUNNING' THEN task.errors ELSE {errors_for_one_more} || $8::json END,
    errors_omitted = CASE WHEN task.status = 'RUNNING' THEN task.errors_omitted ELSE {errors_omitted_with_one_more} END,
    finished_at = CASE WHEN task.status = 'RUNNING' THEN NULL ELSE statement_timestamp() END,
    cancel_requested_at = coalesce(task.cancel_requested_at, statement_timestamp())
FROM held
WHERE task.ctid = held.place
RETURNING task.id, task.queue_name, task.status = 'RUNNING', task.awaited IS NOT NULL AND task.status <> 'RUNNING'
