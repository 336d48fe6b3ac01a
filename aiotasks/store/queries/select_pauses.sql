-- What is paused, the longest paused first: kind, name, reason, for how many seconds, and until when (epoch
-- seconds; NULL: until it is resumed).
-- $1 backend
SELECT pause.kind, pause.name, pause.reason,
    extract(epoch FROM statement_timestamp() - pause.paused_at)::double precision,
    extract(epoch FROM pause.until)::double precision
FROM aiotasks_pause AS pause
WHERE pause.backend = $1::text AND (pause.until IS NULL OR pause.until > statement_timestamp())
ORDER BY pause.paused_at, pause.kind, pause.name
