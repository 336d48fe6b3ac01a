-- The role of this session, where the session is, and which of aiotasks' tables it finds (NULL: none).
SELECT
    session_user::text,
    current_user::text,
    current_setting('search_path'),
    current_database()::text,
    pg_postmaster_start_time(),
    concat_ws(':', host(inet_server_addr()), inet_server_port()),
    coalesce((SELECT connection.ssl FROM pg_stat_ssl AS connection WHERE connection.pid = pg_backend_pid()), false),
    to_regclass('aiotasks_task')::oid::bigint,
    to_regclass('aiotasks_worker')::oid::bigint
