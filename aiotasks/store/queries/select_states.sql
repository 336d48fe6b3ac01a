-- Look the states of tasks up that a browser shows: no arguments, return values or errors, which may be large, and
-- aren't its business. The times are text in UTC, for JSON (NULL for an infinite one). Whether a task was cancelled is
-- in the text of its last error, which isn't parsed: ->> raises an error for a text with \u0000.
-- $1 ids, $2 backend, $3 how the text of a cancelled task's error begins
SELECT
    task.id,
    task.status,
    CASE WHEN task.status = 'FAILED'
        THEN coalesce(starts_with(task.errors[cardinality(task.errors)]::text, $3::text), false)
        ELSE false
    END,
    task.metadata::text,
    coalesce(array_length(task.worker_ids, 1), 0),
    to_char(task.enqueued_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
    to_char(task.started_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
    to_char(task.finished_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
FROM aiotasks_task AS task
WHERE task.id = ANY($1::uuid[]) AND task.backend = $2::text
