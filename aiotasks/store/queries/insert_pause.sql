-- Pause a queue or a task. Of one that is paused already, reason and end change, and the time since when stays.
-- $1 backend, $2 kind ('queue' or 'task'), $3 name, $4 reason,
-- $5 when it ends (NULL: not by itself), $6 or in how many seconds
INSERT INTO aiotasks_pause AS pause (backend, kind, name, reason, paused_at, until)
VALUES (
    $1::text, $2::text, $3::text, $4::text, statement_timestamp(),
    coalesce($5::timestamptz, statement_timestamp() + make_interval(secs => $6::double precision))
)
ON CONFLICT (backend, kind, name) DO UPDATE
SET reason = excluded.reason,
    until = excluded.until,
    paused_at = CASE
        WHEN pause.until <= statement_timestamp() THEN excluded.paused_at
        ELSE pause.paused_at
    END
RETURNING pause.kind, pause.name, pause.reason,
    extract(epoch FROM statement_timestamp() - pause.paused_at)::double precision,
    extract(epoch FROM pause.until)::double precision
