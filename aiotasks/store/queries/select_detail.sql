-- All that the table knows of one task, and where the workers are that have had it, as far as their rows are there.
-- $1 id, $2 backend
SELECT
    task.id, task.status, task.task_path, task.queue_name, task.lane, task.priority,
    task.args::text, task.kwargs::text, task.return_value::text, task.metadata::text,
    task.errors::text[], task.errors_omitted, task.worker_ids::text[],
    task.failures, task.crashes, task.max_crashes, task.snoozes, task.keep_result,
    task.unique_key, task.unique_waiting, task.former_key, task.limit_key, task.limit_held, task.ordered,
    task.asked_run_after = 'epoch', {detail_times},
    ARRAY(
        SELECT worker.id::text || ' ' || worker.host || ':' || worker.pid
        FROM aiotasks_worker AS worker
        WHERE worker.id = ANY(task.worker_ids)
    )
FROM aiotasks_task AS task
WHERE task.id = $1::uuid AND task.backend = $2::text
