-- Wake listeners. Sent in a transaction of its own, after the writing one: a commit that notifies
-- holds a lock over the whole cluster while it waits for the disk. This one doesn't wait: a wake-up
-- needn't survive a crash of the server. Inside somebody's transaction nothing is set, as it would
-- hold for their commit, which would fail if the queue of notifications were full by then: they go without
-- where half of it is in use (a listener in a long transaction holds it up).
-- $1 channel, $2 payloads, $3 whether this is a transaction of its own
SELECT
    pg_notify($1::text, payload),
    CASE WHEN $3::boolean THEN set_config('synchronous_commit', 'off', true) END
FROM unnest($2::text[]) AS payload
WHERE $3::boolean OR (SELECT pg_notification_queue_usage()) < 0.5
