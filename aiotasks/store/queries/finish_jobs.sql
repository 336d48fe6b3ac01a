-- Write the final state of tasks that their worker has run. A row that isn't RUNNING under the
-- claim id given (rescued, cancelled, claimed again) stays as it is: that is the fence. The join
-- is by id: a ctid that had to wait for another's update would find nothing. `status || ''` keeps the
-- planner from reading all RUNNING rows by their index, of whose number it has no idea.
-- $1 ids (sorted, so that two batches lock in one order), $2 claim ids, $3 final statuses,
-- $4 return values (JSON text or NULL), $5 errors (JSON text or NULL)
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
WHERE task.id = outcome.id AND task.claim_id = outcome.claim_id AND task.status || '' = 'RUNNING'
RETURNING task.id, task.finished_at
