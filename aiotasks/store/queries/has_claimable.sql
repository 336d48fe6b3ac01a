-- The queue of a task that a claim would have taken for so long, if there is one: as claim_jobs, of which no one is late
-- that is paused, has expired, has been in two crashes, or is locked. Its row is locked for this statement alone.
-- $1 backend, $2 queue names, $3 lanes, $4 seconds for which the task has been READY
WITH paused AS MATERIALIZED (
    SELECT ARRAY(
        SELECT CASE pause.kind WHEN 'queue' THEN 'queue ' ELSE '' END || pause.name
        FROM aiotasks_pause AS pause
        WHERE pause.backend = $1::text AND (pause.until IS NULL OR pause.until > statement_timestamp())
    ) AS names
)
SELECT source.queue_name
FROM paused
CROSS JOIN unnest($2::text[]) AS source (queue_name)
CROSS JOIN unnest($3::text[]) AS lane (name)
CROSS JOIN LATERAL (
    SELECT ready.id
    FROM aiotasks_task AS ready
    WHERE ready.status = 'READY' AND ready.backend = $1::text AND ready.lane = lane.name
      AND ready.queue_name = source.queue_name
      AND ready.ready_at <= statement_timestamp() - make_interval(secs => $4::double precision)
      AND ready.crashes < 2
      AND (ready.expires_at IS NULL OR ready.expires_at > statement_timestamp())
      AND ready.task_path <> ALL(paused.names)
    ORDER BY ready.priority DESC, ready.ready_at, ready.id
    LIMIT 1
    FOR UPDATE SKIP LOCKED
) AS head
WHERE 'queue ' || source.queue_name <> ALL(paused.names)
LIMIT 1
