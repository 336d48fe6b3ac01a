-- What a list shows of tasks. Of a long last error only the beginning, which has its class.
-- $1 ids, $2 backend
SELECT
    task.id, task.status, task.task_path, task.queue_name, task.priority, {listed_times},
    cardinality(task.worker_ids), task.unique_key, task.limit_key,
    CASE
        WHEN task.status || '' <> 'FAILED' THEN NULL
        WHEN octet_length(task.errors[cardinality(task.errors)]::text) > 16384
            THEN left(task.errors[cardinality(task.errors)]::text, 1020)
        ELSE task.errors[cardinality(task.errors)]::text
    END,
    task.worker_ids[cardinality(task.worker_ids)],
    worker.host, worker.pid
FROM aiotasks_task AS task
LEFT JOIN aiotasks_worker AS worker ON worker.id = task.worker_ids[cardinality(task.worker_ids)]
WHERE task.id = ANY($1::uuid[]) AND task.backend = $2::text
