-- Whether these queues and lanes have a task that is READY, RUNNING or due.
-- $1 backend, $2 queue names (NULL: any), $3 lanes
SELECT EXISTS (
    SELECT FROM aiotasks_task AS task
    WHERE task.backend = $1::text AND task.lane = ANY($3::text[])
      AND ($2::text[] IS NULL OR task.queue_name = ANY($2::text[]))
      AND task.status = 'READY'
) OR EXISTS (
    SELECT FROM aiotasks_task AS task
    WHERE task.backend = $1::text AND task.lane = ANY($3::text[])
      AND ($2::text[] IS NULL OR task.queue_name = ANY($2::text[]))
      AND task.status = 'RUNNING'
) OR EXISTS (
    SELECT FROM aiotasks_task AS task
    WHERE task.backend = $1::text AND task.lane = ANY($3::text[])
      AND ($2::text[] IS NULL OR task.queue_name = ANY($2::text[]))
      AND task.status = 'SCHEDULED' AND task.run_after <= statement_timestamp()
)
