-- Let a line in strict order go on that a FAILED task has stopped. The task stays FAILED.
-- Returns the queues and lanes, as they are stored, that have READY tasks of the line; no row if the task hasn't
-- stopped one; a row of NULLs if nothing waits in it.
-- $1 task id, $2 backend
WITH released AS (
    UPDATE aiotasks_task AS task
    SET limit_held = NULL
    WHERE task.id = $1::uuid AND task.backend = $2::text AND task.status || '' = 'FAILED'
      AND task.limit_held IS NOT NULL
    RETURNING task.limit_key
)
SELECT waiting.queue_name, waiting.lane
FROM released
LEFT JOIN LATERAL (
    SELECT task.queue_name, task.lane
    FROM aiotasks_task AS task
    WHERE task.backend = $2::text AND task.limit_key = released.limit_key AND task.status = 'READY'
      AND task.ordered IS NOT NULL
    ORDER BY task.priority DESC, task.limit_place, task.id
    LIMIT 1
) AS waiting ON true
