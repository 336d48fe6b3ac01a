-- When tasks were finished that a finish didn't find, or found locked. A row that its owner finished keeps the claim
-- id, so an earlier try whose reply was lost shows; finished_at is NULL if the row is still RUNNING.
-- OFFSET 0 keeps each look-up by its id, whatever the planner expects of the table.
-- $1 ids, $2 claim ids
SELECT found.id, found.finished_at
FROM unnest($1::uuid[], $2::uuid[]) AS mine (id, claim_id)
CROSS JOIN LATERAL (
    SELECT task.id, task.finished_at
    FROM aiotasks_task AS task
    WHERE task.id = mine.id AND task.claim_id = mine.claim_id
    OFFSET 0
) AS found
