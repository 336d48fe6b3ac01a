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
-- $8, $9, $10, $11: the same of the thread lane;
-- $12, $13: how many at most per queue, of either lane (empty: as many as of all queues);
-- $14, $15: the lowest priority per queue, of either lane (empty: any).
-- Tasks that have been in two crashes are left out: claim_suspect takes those. So are tasks that weren't started
-- in time, which expire_jobs fails, and those that are paused: a pause holds from the next claim of any worker on.
-- Of a paused queue nothing is read. The tasks of a paused path are passed over one by one, as locked ones are.
-- One array holds both (no path has a space), NULL where nothing is paused: it was 0.3 µs a row to compare with an
-- empty array, and 20 µs a claim to read the table twice by its index (hence the `|| ''`: it has few rows).
WITH claimer AS MATERIALIZED (
    SELECT
        worker.id, set_config('synchronous_commit', 'off', true),
        nullif(ARRAY(
            SELECT CASE pause.kind WHEN 'queue' THEN 'queue ' ELSE '' END || pause.name
            FROM aiotasks_pause AS pause
            WHERE pause.backend || '' = $3::text
              AND (pause.until IS NULL OR pause.until > statement_timestamp())
        ), '{}') AS paused
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
        CROSS JOIN unnest($4::text[], $5::timestamptz[], $12::integer[], $14::smallint[])
            AS source (queue_name, since, most, lowest)
        CROSS JOIN LATERAL (
            SELECT ready.ctid
            FROM aiotasks_task AS ready
            WHERE ready.status = 'READY' AND ready.backend = $3::text AND ready.lane = 'loop'
              AND ready.queue_name = source.queue_name AND ready.ready_at >= source.since
              AND ready.priority >= coalesce(source.lowest, '-32768'::smallint)
              AND (NOT $7::boolean OR (ready.crashes = 0 AND coalesce(ready.max_crashes, 2) > 1))
              AND ready.crashes < 2
              AND (ready.expires_at IS NULL OR ready.expires_at > statement_timestamp())
              AND (claimer.paused IS NULL OR ready.task_path <> ALL(claimer.paused))
            ORDER BY ready.priority DESC, ready.ready_at, ready.id
            LIMIT least($6::integer, source.most)
            FOR UPDATE SKIP LOCKED
        ) AS head
        WHERE claimer.paused IS NULL OR 'queue ' || source.queue_name <> ALL(claimer.paused)
        LIMIT $6::integer
    )
    UNION ALL
    (
        SELECT head.ctid
        FROM claimer
        CROSS JOIN unnest($8::text[], $9::timestamptz[], $13::integer[], $15::smallint[])
            AS source (queue_name, since, most, lowest)
        CROSS JOIN LATERAL (
            SELECT ready.ctid
            FROM aiotasks_task AS ready
            WHERE ready.status = 'READY' AND ready.backend = $3::text AND ready.lane = 'thread'
              AND ready.queue_name = source.queue_name AND ready.ready_at >= source.since
              AND ready.priority >= coalesce(source.lowest, '-32768'::smallint)
              AND (NOT $11::boolean OR (ready.crashes = 0 AND coalesce(ready.max_crashes, 2) > 1))
              AND ready.crashes < 2
              AND (ready.expires_at IS NULL OR ready.expires_at > statement_timestamp())
              AND (claimer.paused IS NULL OR ready.task_path <> ALL(claimer.paused))
            ORDER BY ready.priority DESC, ready.ready_at, ready.id
            LIMIT least($10::integer, source.most)
            FOR UPDATE SKIP LOCKED
        ) AS head
        WHERE claimer.paused IS NULL OR 'queue ' || source.queue_name <> ALL(claimer.paused)
        LIMIT $10::integer
    )
))
RETURNING
    {claimed_columns}
