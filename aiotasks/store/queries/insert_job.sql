-- Store one new task, as insert_jobs does many. Without arrays it takes a quarter less time, and most
-- enqueues are of one task.
-- $1 id, $2 backend, $3 queue name, $4 task path, $5 lane, $6 priority, $7 args, $8 kwargs (JSON text),
-- $9 enqueued_at, $10 run_after, $11 expires (seconds), $12 metadata (JSON text),
-- $13 limit key (NULL: none), $14 whether its limit is in order (NULL, 'continue', 'stop'), from $15 on the policies
-- A task with a limit has a lane of its own, which claim_jobs doesn't know, and a place in its key's line, which stays
-- whatever becomes of the task: see claim_keyed.
INSERT INTO aiotasks_task (
    id, backend, queue_name, task_path, lane, priority, status, args, kwargs, errors, worker_ids,
    crashes, enqueued_at, run_after, ready_at, expires_at, metadata,
    limit_key, limit_place, ordered, {policy_columns}
)
VALUES (
    $1::uuid, $2::text, $3::text, $4::text,
    CASE WHEN $13::text IS NULL THEN $5::text ELSE $5::text || '+' END, $6::smallint,
    CASE WHEN $10::timestamptz > statement_timestamp() THEN 'SCHEDULED' ELSE 'READY' END,
    $7::json, $8::json, '{}'::json[], '{}'::uuid[],
    0, $9::timestamptz, $10::timestamptz,
    CASE WHEN $10::timestamptz > statement_timestamp() THEN NULL ELSE statement_timestamp() END,
    greatest($10::timestamptz, statement_timestamp()) + make_interval(secs => $11::double precision),
    $12::json,
    $13::text, CASE WHEN $13::text IS NOT NULL THEN greatest($10::timestamptz, statement_timestamp()) END,
    CASE WHEN $13::text IS NOT NULL THEN $14::text END, {policy_values:15}
)
