-- What the server is and allows. Connections: how many this role may have to this database at most,
-- and how many sessions there are on the server.
SELECT
    current_setting('server_version_num')::integer,
    current_setting('transaction_read_only')::boolean,
    current_setting('autovacuum')::boolean AND current_setting('track_counts')::boolean,
    least(
        current_setting('max_connections')::integer
        - current_setting('superuser_reserved_connections')::integer
        - coalesce(current_setting('reserved_connections', true)::integer, 0),
        nullif(role.rolconnlimit, -1),
        nullif(here.datconnlimit, -1)
    ),
    (SELECT count(*) FROM pg_stat_activity AS activity WHERE activity.backend_type = 'client backend')
FROM pg_roles AS role, pg_database AS here
WHERE role.rolname = session_user AND here.datname = current_database()
