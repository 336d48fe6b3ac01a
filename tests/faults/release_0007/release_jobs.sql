-- Release tasks that were claimed but not run to an end: no attempt is spent. A task with a delay becomes
-- SCHEDULED; a task without keeps its place in the queue. A task that has been unknown for longer than its
-- window, or that is to be cancelled, stays as it is and is returned without a queue name: the caller fails it.
-- A task that isn't returned isn't RUNNING under its claim id, or another transaction has locked it (a cancel()
-- inside of a long one): as in finish_jobs, it must not delay the others.
-- $1 ids, $2 claim ids, $3 delays in seconds (0: READY at once),
-- $4 seconds for which a task may stay unknown (NULL: it is known)
WITH mine AS MATERIALIZED (
    SELECT held.ctid AS place, held.id, released.delay, released.unknown_for,
           held.cancel_requested_at IS NULL AND (
               released.unknown_for IS NULL OR held.unknown_since IS NULL
               OR held.unknown_since + make_interval(secs => released.unknown_for) > statement_timestamp()
           ) AS goes
    FROM unnest($1::uuid[], $2::uuid[], $3::double precision[], $4::double precision[])
        AS released (id, claim_id, delay, unknown_for)
    CROSS JOIN LATERAL (
        SELECT task.ctid, task.id, task.cancel_requested_at, task.unknown_since
        FROM aiotasks_task AS task
        WHERE task.id = released.id AND task.claim_id = released.claim_id AND task.status || '' = 'RUNNING'
        FOR UPDATE SKIP LOCKED
    ) AS held
), gone AS (
    UPDATE aiotasks_task AS task
    SET status = CASE WHEN mine.delay > 0 THEN 'SCHEDULED' ELSE 'READY' END,
        run_after = CASE
            WHEN mine.delay > 0 THEN statement_timestamp() + make_interval(secs => mine.delay)
            ELSE task.run_after
        END,
        ready_at = CASE WHEN mine.delay > 0 THEN NULL ELSE coalesce(task.ready_at, statement_timestamp()) END,
        unknown_since = CASE
            WHEN mine.unknown_for IS NOT NULL THEN coalesce(task.unknown_since, statement_timestamp())
        END,
        claim_id = NULL,
        worker_id = NULL,
        worker_ids = trim_array(task.worker_ids, least(1, cardinality(task.worker_ids))),
        started_at = CASE WHEN cardinality(task.worker_ids) > 1 THEN task.started_at END,
        last_attempted_at = CASE WHEN cardinality(task.worker_ids) > 1 THEN task.last_attempted_at END
    FROM mine
    WHERE task.ctid = mine.place AND mine.goes
    RETURNING task.id, task.queue_name
)
SELECT gone.id, gone.queue_name
FROM gone
UNION ALL
SELECT mine.id, NULL
FROM mine
WHERE NOT mine.goes
