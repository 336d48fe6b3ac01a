-- Write the final state of tasks that their worker has run. A row that isn't RUNNING under the
-- claim id given (rescued, cancelled, claimed again) stays as it is: that is the fence. So does one
-- that somebody has locked (a cancel() inside a long transaction): it must not hold up the others,
-- and is tried again. The joins are by id: a ctid could be another version's by now. `status || ''`
-- keeps the planner from reading all RUNNING rows by their index, of whose number it has no idea.
-- $1 ids (sorted, so that two batches lock in one order), $2 claim ids, $3 final statuses,
-- $4 return values (JSON text or NULL), $5 errors (JSON text or NULL)
WITH mine AS MATERIALIZED (
    SELECT task.id
    FROM aiotasks_task AS task
    JOIN unnest($1::uuid[], $2::uuid[]) AS outcome (id, claim_id)
        ON task.id = outcome.id AND task.claim_id = outcome.claim_id
    WHERE task.status || '' = 'RUNNING'
    FOR UPDATE OF task SKIP LOCKED
)
UPDATE aiotasks_task AS task
SET status = outcome.status,
    return_value = outcome.return_value::json,
    errors = CASE
        WHEN outcome.error IS NULL THEN task.errors
        ELSE task.errors || outcome.error::json
    END,
    worker_id = NULL,
    finished_at = now()
FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[])
    AS outcome (id, claim_id, status, return_value, error)
JOIN mine ON mine.id = outcome.id
WHERE task.id = outcome.id AND task.claim_id = outcome.claim_id AND task.status || '' = 'RUNNING'
RETURNING task.id, task.finished_at
