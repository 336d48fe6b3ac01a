-- Wake listeners. Sent in a transaction of its own, after the one that writes, because a commit that notifies
-- holds a lock over the whole cluster while it waits for the disk. This one doesn't wait: a wake-up
-- need not survive a crash of the server. Inside of a caller's transaction synchronous_commit stays, because it
-- would apply to the caller's commit; and nothing is sent while half of the queue of notifications is in use (a
-- listener in a long transaction keeps it full), because that commit would fail if the queue were full by then.
-- $1 channel, $2 payloads, $3 whether this is a transaction of its own
SELECT
    pg_notify($1::text, payload),
    CASE WHEN $3::boolean THEN set_config('synchronous_commit', 'off', true) END
FROM unnest($2::text[]) AS payload
WHERE $3::boolean OR (SELECT pg_notification_queue_usage()) < 0.5
