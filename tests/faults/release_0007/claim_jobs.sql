-- Take READY tasks for a worker whose lease is live; for any other, take nothing.
--
-- The head of each queue is read from the READY index by itself, so that the cost doesn't grow
-- with the backlog (one scan over all queues would sort it). LIMIT stops reading further queues
-- once the lane's slots are full; the caller rotates the queues' order. A ctid is safe here
-- because SKIP LOCKED never waits; a head that was touched a moment ago may return fewer rows.
-- A claim need not survive a crash of the server (the task is READY then, and the late finish
-- fenced), so it doesn't wait for the disk; set_config is local to this statement.
--
-- Returns only the columns that the caller doesn't know, because every column costs time. A row that aiotasks
-- hasn't written may hold times that Python can't hold, or nested arrays: it must not make the claim of all other
-- rows fail.
--
-- $1 worker id, $2 a claim id never used before, $3 backend,
-- of the loop lane: $4 queue names, $5 where to begin per queue (ready_at), $6 how many at most,
-- $7 whether to leave out tasks that a crash before their start would harm;
-- $8, $9, $10, $11: the same of the thread lane.
-- Tasks that have been in two crashes are left out: claim_suspect takes those.
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
    (
        SELECT head.ctid
        FROM claimer
        CROSS JOIN unnest($4::text[], $5::timestamptz[]) AS source (queue_name, since)
        CROSS JOIN LATERAL (
            SELECT ready.ctid
            FROM aiotasks_task AS ready
            WHERE ready.status = 'READY' AND ready.backend = $3::text AND ready.lane = 'loop'
              AND ready.queue_name = source.queue_name AND ready.ready_at >= source.since
              AND (NOT $7::boolean OR (ready.crashes = 0 AND coalesce(ready.max_crashes, 2) > 1))
              AND ready.crashes < 2
            ORDER BY ready.priority DESC, ready.ready_at, ready.id
            LIMIT $6::integer
            FOR UPDATE SKIP LOCKED
        ) AS head
        LIMIT $6::integer
    )
    UNION ALL
    (
        SELECT head.ctid
        FROM claimer
        CROSS JOIN unnest($8::text[], $9::timestamptz[]) AS source (queue_name, since)
        CROSS JOIN LATERAL (
            SELECT ready.ctid
            FROM aiotasks_task AS ready
            WHERE ready.status = 'READY' AND ready.backend = $3::text AND ready.lane = 'thread'
              AND ready.queue_name = source.queue_name AND ready.ready_at >= source.since
              AND (NOT $11::boolean OR (ready.crashes = 0 AND coalesce(ready.max_crashes, 2) > 1))
              AND ready.crashes < 2
            ORDER BY ready.priority DESC, ready.ready_at, ready.id
            LIMIT $10::integer
            FOR UPDATE SKIP LOCKED
        ) AS head
        LIMIT $10::integer
    )
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
