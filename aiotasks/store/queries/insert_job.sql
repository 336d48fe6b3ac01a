-- Store one new task, as insert_jobs does many. Without arrays it takes a quarter less time, and most
-- enqueues are of one task. A task with a limit is stored by insert_jobs: its columns would cost all others 3 µs here.
-- $1 id, $2 backend, $3 queue name, $4 task path, $5 lane, $6 priority, $7 args, $8 kwargs (JSON text),
-- $9 enqueued_at, $10 run_after, $11 expires (seconds), $12 metadata (JSON text), from $13 on the policies
INSERT INTO aiotasks_task (
    id, backend, queue_name, task_path, lane, priority, status, args, kwargs, errors, worker_ids,
    crashes, enqueued_at, run_after, ready_at, expires_at, metadata, {policy_columns}
)
VALUES (
    $1::uuid, $2::text, $3::text, $4::text, $5::text, $6::smallint,
    CASE WHEN $10::timestamptz > statement_timestamp() THEN 'SCHEDULED' ELSE 'READY' END,
    $7::json, $8::json, '{}'::json[], '{}'::uuid[],
    0, $9::timestamptz, $10::timestamptz,
    CASE WHEN $10::timestamptz > statement_timestamp() THEN NULL ELSE statement_timestamp() END,
    greatest($10::timestamptz, statement_timestamp()) + make_interval(secs => $11::double precision),
    $12::json, {policy_values:13}
)
