-- Whether this role may see what all sessions hold; and the holder of the oldest snapshot of this database, its
-- age in transactions, and in seconds where that is known. No row that was deleted or updated since then can be
-- vacuumed. Vacuum's own workers are left out, because they delay nothing.
SELECT pg_has_role('pg_read_all_stats', 'USAGE'), oldest.kind, oldest.name, oldest.transactions, oldest.seconds
FROM (VALUES (1)) AS always (row)
LEFT JOIN LATERAL (
    SELECT held.kind, held.name, held.transactions, held.seconds
    FROM (
        SELECT
            CASE activity.backend_type WHEN 'walsender' THEN 'standby' ELSE 'session' END AS kind,
            concat_ws(' ', activity.pid::text, activity.application_name) AS name,
            greatest(age(activity.backend_xid), age(activity.backend_xmin)) AS transactions,
            extract(epoch FROM clock_timestamp() - activity.xact_start)::double precision AS seconds
        FROM pg_stat_activity AS activity
        WHERE (activity.datname = current_database() OR activity.datname IS NULL)
          AND activity.backend_type <> 'autovacuum worker' AND activity.pid <> pg_backend_pid()
        UNION ALL
        SELECT
            'prepared transaction', prepared.gid, age(prepared.transaction),
            extract(epoch FROM clock_timestamp() - prepared.prepared)::double precision
        FROM pg_prepared_xacts AS prepared
        WHERE prepared.database = current_database()
        UNION ALL
        SELECT 'replication slot', slot.slot_name::text, age(slot.xmin), NULL
        FROM pg_replication_slots AS slot
    ) AS held
    WHERE held.transactions IS NOT NULL
    ORDER BY held.transactions DESC, held.seconds DESC NULLS LAST
    LIMIT 1
) AS oldest ON true
