-- READY tasks with limits that have been in two crashes, one of each key: claim_keyed takes them by their ids alone.
-- In the order of the keys, so that those that can't be taken hide no other.
-- $1 backend, $2 lane as it is stored, $3 queue names (NULL: any), $4 how many tasks to look at, $5 the key to begin
-- after ('': the first), $6 how many keys at most
SELECT DISTINCT ON (suspect.limit_key) suspect.queue_name, suspect.limit_key::text, suspect.id
FROM (
    SELECT task.queue_name, task.limit_key, task.id, task.priority, task.limit_place
    FROM aiotasks_task AS task
    WHERE task.status = 'READY' AND task.crashes >= 2 AND task.backend = $1::text AND task.lane = $2::text
      AND ($3::text[] IS NULL OR task.queue_name = ANY($3::text[]))
      AND (task.expires_at IS NULL OR task.expires_at > statement_timestamp())
    ORDER BY task.priority DESC, task.ready_at, task.id
    LIMIT $4::integer
) AS suspect
WHERE suspect.limit_key > $5::text
ORDER BY suspect.limit_key, suspect.priority DESC, suspect.limit_place, suspect.id
LIMIT $6::integer
