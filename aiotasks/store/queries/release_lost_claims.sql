-- A claim whose reply was lost leaves rows RUNNING that nobody runs, under a lease that is alive.
-- (One that is to be cancelled is, once it has been claimed again.)
-- Their worker gives back what it doesn't hold and isn't about to be told of; what is locked at the moment,
-- the next time.
-- $1 worker id, $2 claim ids that it holds, $3 seconds that a claim's reply may take
UPDATE aiotasks_task AS task
SET status = 'READY',
    ready_at = clock_timestamp(),
    claim_id = NULL,
    worker_id = NULL,
    worker_ids = trim_array(task.worker_ids, least(1, cardinality(task.worker_ids))),
    started_at = CASE WHEN cardinality(task.worker_ids) > 1 THEN task.started_at END,
    last_attempted_at = CASE WHEN cardinality(task.worker_ids) > 1 THEN task.last_attempted_at END
WHERE task.ctid = ANY(ARRAY(
    SELECT lost.ctid
    FROM aiotasks_task AS lost
    WHERE lost.status = 'RUNNING' AND lost.worker_id = $1::uuid
      AND lost.claim_id <> ALL($2::uuid[])
      AND lost.last_attempted_at < now() - make_interval(secs => $3::double precision)
    FOR UPDATE SKIP LOCKED
))
RETURNING task.id, task.queue_name
