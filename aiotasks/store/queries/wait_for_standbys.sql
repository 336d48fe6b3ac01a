-- Return when all that was committed before is where synchronous_standby_names wants it. A row can be
-- seen without being there: a restart, or whoever ends the session, cuts short the wait of its INSERT.
-- The commit of anything that is written waits for all before it; this writes no row.
SELECT pg_logical_emit_message(true, 'aiotasks', '')::text
