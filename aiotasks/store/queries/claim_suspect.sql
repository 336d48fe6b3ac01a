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
          AND (ready.expires_at IS NULL OR ready.expires_at > statement_timestamp())
          AND NOT EXISTS (
              SELECT FROM aiotasks_pause AS pause
              WHERE pause.backend = $3::text
                AND pause.name = CASE pause.kind WHEN 'queue' THEN ready.queue_name ELSE ready.task_path END
                AND (pause.until IS NULL OR pause.until > statement_timestamp())
          )
        ORDER BY ready.priority DESC, ready.ready_at, ready.id
        LIMIT 1
        FOR UPDATE SKIP LOCKED
    ) AS head
))
RETURNING
    {claimed_columns}
