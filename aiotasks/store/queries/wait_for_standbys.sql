-- Return when all earlier commits are where synchronous_standby_names requires them. A row can be visible before
-- that, because a restart, or the end of its session, cuts short the wait of its INSERT. Every commit that writes
-- waits for all earlier ones; this one writes no row.
SELECT pg_logical_emit_message(true, 'aiotasks', '')::text
