-- Release tasks that were claimed and are to run again: READY, or SCHEDULED after a delay.
-- Without an error no attempt is spent: the task wasn't run to an end, or is snoozed. With an error the attempt has
-- failed and counts. Without a delay a task that has failed or snoozed gets the last place in the queue, because it
-- would keep the others from running; any other keeps its place. With a delay its place is when it is due, also in the
-- line of its limit's key.
-- run_after is when the task is due now; the caller's own moves to asked_run_after ('epoch': none).
-- A task that is to be cancelled, that has been unknown for longer than its window, or that would be due after it has
-- expired, stays as it is and is returned without a queue name: the caller fails it.
-- A task that isn't returned isn't RUNNING under its claim id, or another transaction has locked it (a cancel()
-- inside of a long one): as in finish_jobs, it must not delay the others.
-- Returns id, queue name, whether the task is to be cancelled, and whether somebody awaits each change of a task that
-- was released.
-- $1 ids, $2 claim ids, $3 delays in seconds (0: READY at once),
-- $4 seconds for which a task may stay unknown (NULL: it is known),
-- $5 errors (JSON text; NULL: no attempt was spent), $6 whether the task has snoozed.
-- The last three may be shorter than the first: NULLs
WITH mine AS MATERIALIZED (
    SELECT held.ctid AS place, held.id, released.delay, released.unknown_for, released.error, released.snoozes,
           held.cancel_requested_at IS NOT NULL AS cancelled,
           held.cancel_requested_at IS NULL AND (
               released.unknown_for IS NULL OR held.unknown_since IS NULL
               OR held.unknown_since + make_interval(secs => released.unknown_for) > statement_timestamp()
           ) AND (
               (released.error IS NULL AND released.snoozes IS NOT TRUE) OR held.expires_at IS NULL
               OR held.expires_at > statement_timestamp() + make_interval(secs => released.delay)
           ) AS goes
    FROM unnest(
        $1::uuid[], $2::uuid[], $3::double precision[], $4::double precision[], $5::text[], $6::boolean[]
    ) AS released (id, claim_id, delay, unknown_for, error, snoozes)
    CROSS JOIN LATERAL (
        SELECT task.ctid, task.id, task.cancel_requested_at, task.unknown_since, task.expires_at
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
        asked_run_after = CASE
            WHEN mine.delay > 0 THEN coalesce(task.asked_run_after, task.run_after, 'epoch')
            ELSE task.asked_run_after
        END,
        ready_at = CASE
            WHEN mine.delay > 0 THEN NULL
            WHEN mine.error IS NOT NULL OR mine.snoozes THEN clock_timestamp()
            ELSE coalesce(task.ready_at, statement_timestamp())
        END,
        -- As ready_at, but in strict order a task keeps its place.
        limit_place = CASE
            WHEN task.limit_place IS NULL OR task.ordered IS NOT NULL THEN task.limit_place
            WHEN mine.delay > 0
                THEN greatest(task.limit_place, statement_timestamp() + make_interval(secs => mine.delay))
            WHEN mine.error IS NOT NULL OR mine.snoozes THEN greatest(task.limit_place, clock_timestamp())
            ELSE task.limit_place
        END,
        errors = CASE
            WHEN mine.error IS NULL THEN task.errors
            ELSE {errors_for_one_more} || mine.error::json
        END,
        errors_omitted = CASE
            WHEN mine.error IS NULL THEN task.errors_omitted
            ELSE {errors_omitted_with_one_more}
        END,
        failures = CASE
            WHEN mine.error IS NULL THEN task.failures
            ELSE least(coalesce(task.failures, 0) + 1, 32767)
        END,
        snoozes = CASE WHEN mine.snoozes THEN least(coalesce(task.snoozes, 0) + 1, 32767) ELSE task.snoozes END,
        unknown_since = CASE
            WHEN mine.unknown_for IS NOT NULL THEN coalesce(task.unknown_since, statement_timestamp())
        END,
        limit_held = {held_until_final},
        claim_id = NULL,
        worker_id = NULL,
        worker_ids = CASE
            WHEN mine.error IS NULL THEN trim_array(task.worker_ids, least(1, cardinality(task.worker_ids)))
            ELSE task.worker_ids
        END,
        started_at = CASE
            WHEN mine.error IS NOT NULL OR cardinality(task.worker_ids) > 1 THEN task.started_at
        END,
        last_attempted_at = CASE
            WHEN mine.error IS NOT NULL OR cardinality(task.worker_ids) > 1 THEN task.last_attempted_at
        END
    FROM mine
    WHERE task.ctid = mine.place AND mine.goes
    RETURNING task.id, task.queue_name, task.awaited = 2 AS is_watched
)
SELECT gone.id, gone.queue_name, false, gone.is_watched IS TRUE
FROM gone
UNION ALL
SELECT mine.id, NULL, mine.cancelled, false
FROM mine
WHERE NOT mine.goes
