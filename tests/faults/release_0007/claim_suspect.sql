-- Take one READY task that has been in two crashes. claim_jobs leaves these tasks out. They have an index of
-- their own, because there are few of them, and finding them in a long queue would read all of it.
-- $1 worker id, $2 a claim id never used before, $3 backend, $4 lane, $5 queue names (NULL: any)
WITH claimer AS MATERIALIZED (
    SELECT worker.id, set_config('synchronous_commit', 'off', true)
    FROM aiotasks_worker AS worker
    WHERE worker.id = $1::uuid AND worker.lease_expires_at > clock_timestamp()
)
UPDATE aiotasks_task AS task
SET status = 'RUNNING',
    claim_id = $2::uuid,
    worker_id = $1::uuid,
    worker_ids = CASE WHEN array_ndims(task.worker_ids) > 1 THEN '{}' ELSE task.worker_ids END || $1::uuid,
    started_at = coalesce(task.started_at, statement_timestamp()),
    last_attempted_at = statement_timestamp()
WHERE task.ctid = ANY(ARRAY(
    SELECT head.ctid
    FROM claimer
    CROSS JOIN LATERAL (
        SELECT ready.ctid
        FROM aiotasks_task AS ready
        WHERE ready.status = 'READY' AND ready.crashes >= 2 AND ready.backend = $3::text
          AND ready.lane = $4::text AND ($5::text[] IS NULL OR ready.queue_name = ANY($5::text[]))
        ORDER BY ready.priority DESC, ready.ready_at, ready.id
        LIMIT 1
        FOR UPDATE SKIP LOCKED
    ) AS head
))
RETURNING
    task.id,
    task.queue_name,
    task.task_path,
    task.lane,
    task.priority,
    task.args::text,
    task.kwargs::text,
    task.errors::text[],
    task.worker_ids::text[],
    timestamptz_send(CASE WHEN task.enqueued_at BETWEEN '0001-01-02 00:00+00' AND '9999-12-31 00:00+00' THEN task.enqueued_at END),
    timestamptz_send(CASE WHEN task.run_after BETWEEN '0001-01-02 00:00+00' AND '9999-12-31 00:00+00' THEN task.run_after END),
    timestamptz_send(least(task.ready_at, statement_timestamp())),
    timestamptz_send(CASE WHEN task.started_at BETWEEN '0001-01-02 00:00+00' AND '9999-12-31 00:00+00' THEN task.started_at END),
    timestamptz_send(task.last_attempted_at),
    task.max_crashes, task.keep_result
