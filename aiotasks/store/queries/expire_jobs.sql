-- Fail waiting tasks that weren't started in time, those that expired first before the others. No attempt is
-- spent, and a line of tasks in order goes on. Nothing here keeps an expired task from being started: the claims do
-- that.
-- $1 backend, $2 the error to store (JSON text), $3 how many at the most
UPDATE aiotasks_task AS task
SET status = 'FAILED',
    finished_at = statement_timestamp(),
    limit_held = NULL,
    errors = CASE WHEN array_ndims(task.errors) > 1 THEN '{}' ELSE task.errors END || $2::json
WHERE task.ctid = ANY(ARRAY(
    SELECT late.ctid
    FROM unnest(ARRAY['READY', 'SCHEDULED']) AS waiting (status)
    CROSS JOIN LATERAL (
        SELECT expired.ctid
        FROM aiotasks_task AS expired
        WHERE expired.backend = $1::text AND expired.status = waiting.status
          AND expired.expires_at <= statement_timestamp()
        ORDER BY expired.expires_at
        LIMIT $3::integer
        FOR UPDATE SKIP LOCKED
    ) AS late
    LIMIT $3::integer
))
RETURNING
    {job_columns}
