-- Pause a key, or all keys of a limit: no claim that begins after the commit takes a task of it. One that is paused
-- stays so, with a new reason.
-- $1 backend, $2 key, $3 reason
INSERT INTO aiotasks_limit AS own (backend, key, claimed_at, paused_at, pause_reason)
VALUES ($1::text, $2::text, statement_timestamp(), statement_timestamp(), $3::text)
ON CONFLICT (backend, key) DO UPDATE
SET paused_at = coalesce(own.paused_at, excluded.paused_at), pause_reason = excluded.pause_reason
