-- Take tasks away from workers that have died: tasks that are RUNNING, and whose worker has no live lease.
-- Starting from the tasks, not from dead workers' rows, finds also tasks that were claimed while their worker's
-- row was being removed. A task becomes READY again, or FAILED: after too many crashes, or if it was to be
-- cancelled. Only a worker with a live lease rescues, and never its own tasks: where the database's clock has
-- stepped forward, all leases look expired until their workers have renewed them.
-- A row that aiotasks hasn't written (nested errors, more crashes than the column holds, times that Python can't
-- hold) must not make the statement fail for the others.
-- $1 backend, $2 the number of crashes after which a task fails, if it has no max_crashes,
-- $3 the error to store (JSON text), $4 how many at the most,
-- $5 the error of a cancelled task, $6 the id of the worker that rescues,
-- $7 seconds that its lease must have left at the least
WITH rescuer AS MATERIALIZED (
    SELECT worker.id
    FROM aiotasks_worker AS worker
    WHERE worker.id = $6::uuid
      AND worker.lease_expires_at > clock_timestamp() + make_interval(secs => $7::double precision)
), lost AS MATERIALIZED (
    SELECT task.ctid AS place, task.crashes + 1 AS crashes,
           task.cancel_requested_at IS NOT NULL AS cancelled,
           task.cancel_requested_at IS NOT NULL
               OR task.crashes + 1 >= coalesce(task.max_crashes, $2::integer) AS fails
    FROM rescuer
    CROSS JOIN aiotasks_task AS task
    WHERE task.status = 'RUNNING' AND task.backend = $1::text
      AND task.worker_id IS DISTINCT FROM rescuer.id
      AND NOT EXISTS (
          SELECT FROM aiotasks_worker AS worker
          WHERE worker.id = task.worker_id AND worker.lease_expires_at > clock_timestamp()
      )
    LIMIT $4::integer
    FOR UPDATE OF task SKIP LOCKED
)
UPDATE aiotasks_task AS task
SET status = CASE WHEN lost.fails THEN 'FAILED' ELSE 'READY' END,
    crashes = least(lost.crashes, 32767),
    errors = {errors_for_one_more}
        || CASE WHEN lost.cancelled THEN $5::json ELSE $3::json END,
    errors_omitted = {errors_omitted_with_one_more},
    ready_at = CASE WHEN lost.fails THEN task.ready_at ELSE clock_timestamp() END,
    finished_at = CASE WHEN lost.fails THEN statement_timestamp() END,
    unknown_since = NULL,
    limit_held = CASE WHEN lost.fails THEN {held_by_failure} ELSE {held_until_final} END,
    claim_id = NULL,
    worker_id = NULL
FROM lost
WHERE task.ctid = lost.place
RETURNING
    {job_columns}
