-- Renew a worker's lease. Also one that has expired, as long as its row stands: nobody has
-- missed the worker yet, so nothing of it was lost. No row back: it was, and the worker must
-- register again.
-- $1 worker id, $2 seconds
UPDATE aiotasks_worker
SET lease_expires_at = now() + make_interval(secs => $2::double precision)
WHERE id = $1::uuid
RETURNING id
