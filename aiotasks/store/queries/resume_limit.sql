-- End a pause of a key or a limit, and a time for which a task has closed it.
-- Returns a row if there was any.
-- $1 backend, $2 key
UPDATE aiotasks_limit AS own
SET paused_at = NULL, pause_reason = NULL, closed_until = NULL
WHERE own.backend = $1::text AND own.key = $2::text
  AND (own.paused_at IS NOT NULL OR own.closed_until > statement_timestamp())
RETURNING true
