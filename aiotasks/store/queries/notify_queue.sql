-- How full the queue of NOTIFY is (0 to 1), and the session with the oldest transaction: a session that LISTENs
-- takes nothing from the queue before its transaction ends. All databases of the cluster share the queue.
SELECT pg_notification_queue_usage(), oldest.pid, oldest.name, oldest.seconds
FROM (VALUES (1)) AS always (row)
LEFT JOIN LATERAL (
    SELECT
        activity.pid,
        concat_ws(' ', activity.usename, nullif(activity.application_name, ''), activity.state) AS name,
        extract(epoch FROM clock_timestamp() - activity.xact_start)::double precision AS seconds
    FROM pg_stat_activity AS activity
    WHERE activity.xact_start IS NOT NULL AND activity.pid <> pg_backend_pid()
      AND activity.backend_type = 'client backend'
    ORDER BY activity.xact_start LIMIT 1
) AS oldest ON true
