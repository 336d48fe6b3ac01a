-- Which of these did an earlier, repeated finish settle after all? The claim id stays on a row
-- that its owner finished, and on no other row that has left RUNNING.
-- $1 ids, $2 claim ids
SELECT task.id, task.finished_at
FROM aiotasks_task AS task
JOIN unnest($1::uuid[], $2::uuid[]) AS mine (id, claim_id)
    ON task.id = mine.id AND task.claim_id = mine.claim_id
WHERE task.status <> 'RUNNING' AND task.finished_at IS NOT NULL
