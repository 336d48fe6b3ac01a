-- Whether these queues and lanes have a task that is READY, RUNNING or due. What is paused counts only while it
-- runs, because nothing can be waited for until somebody resumes it: queues, tasks, and the keys of limits, which may
-- have a concurrency of 0, or be lines that a task which has FAILED has stopped. Nor does what has a limit that is left
-- to other workers. A rate is waited for.
-- $1 backend, $2 queue names (NULL: any), $3 lanes, as they are stored, $4 names of limits that aren't known
WITH paused AS MATERIALIZED (
    SELECT
        coalesce(array_agg(pause.name) FILTER (WHERE pause.kind = 'queue'), '{}') AS queues,
        coalesce(array_agg(pause.name) FILTER (WHERE pause.kind = 'task'), '{}') AS tasks
    FROM aiotasks_pause AS pause
    WHERE pause.backend = $1::text AND (pause.until IS NULL OR pause.until > statement_timestamp())
)
SELECT EXISTS (
    SELECT FROM paused
    CROSS JOIN aiotasks_task AS task
    WHERE task.backend = $1::text AND task.lane = ANY($3::text[])
      AND ($2::text[] IS NULL OR task.queue_name = ANY($2::text[]))
      AND task.status = 'READY'
      AND task.queue_name <> ALL(paused.queues) AND task.task_path <> ALL(paused.tasks)
      AND (task.limit_key IS NULL OR NOT ({key_is_paused} OR {line_is_stopped} OR {limit_is_unknown}))
) OR EXISTS (
    SELECT FROM aiotasks_task AS task
    WHERE task.backend = $1::text AND task.lane = ANY($3::text[])
      AND ($2::text[] IS NULL OR task.queue_name = ANY($2::text[]))
      AND task.status = 'RUNNING'
) OR EXISTS (
    SELECT FROM paused
    CROSS JOIN aiotasks_task AS task
    WHERE task.backend = $1::text AND task.lane = ANY($3::text[])
      AND ($2::text[] IS NULL OR task.queue_name = ANY($2::text[]))
      AND task.status = 'SCHEDULED' AND task.run_after <= statement_timestamp()
      AND task.queue_name <> ALL(paused.queues) AND task.task_path <> ALL(paused.tasks)
      AND (task.limit_key IS NULL OR NOT ({key_is_paused} OR {line_is_stopped} OR {limit_is_unknown}))
)
