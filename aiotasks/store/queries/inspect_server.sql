-- The server's version and limits. Connections: the most that this role may have to this database, the most that
-- all ordinary roles may have to the server, and the number open (a role that isn't a member of
-- pg_read_all_stats doesn't see the kind of other roles' sessions).
SELECT
    current_setting('server_version_num')::integer,
    current_setting('transaction_read_only')::boolean,
    current_setting('autovacuum')::boolean AND current_setting('track_counts')::boolean,
    least(server.slots, nullif(role.rolconnlimit, -1), nullif(here.datconnlimit, -1)),
    server.slots,
    (
        SELECT count(*) FROM pg_stat_activity AS activity
        WHERE activity.datid IS NOT NULL AND coalesce(activity.backend_type, 'client backend') = 'client backend'
    )
FROM pg_roles AS role, pg_database AS here, (
    SELECT
        current_setting('max_connections')::integer
        - current_setting('superuser_reserved_connections')::integer
        - coalesce(current_setting('reserved_connections', true)::integer, 0) AS slots
) AS server
WHERE role.rolname = session_user AND here.datname = current_database()
