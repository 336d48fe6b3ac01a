-- A claim whose reply was lost leaves rows RUNNING that nobody runs, under a lease that is alive.
-- (One that is to be cancelled is, once it has been claimed again.)
-- Their worker gives back what it doesn't hold and isn't about to be told of.
-- $1 worker id, $2 claim ids that it holds, $3 seconds that a claim's reply may take
UPDATE aiotasks_task AS task
SET status = 'READY',
    ready_at = clock_timestamp(),
    claim_id = NULL,
    worker_id = NULL,
    worker_ids = trim_array(task.worker_ids, least(1, cardinality(task.worker_ids))),
    started_at = CASE WHEN cardinality(task.worker_ids) > 1 THEN task.started_at END,
    last_attempted_at = CASE WHEN cardinality(task.worker_ids) > 1 THEN task.last_attempted_at END
WHERE task.status = 'RUNNING' AND task.worker_id = $1::uuid
  AND task.claim_id <> ALL($2::uuid[])
  AND task.last_attempted_at < now() - make_interval(secs => $3::double precision)
RETURNING task.id, task.queue_name
