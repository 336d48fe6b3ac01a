-- What live workers say of themselves (JSON text).
-- $1 backend
SELECT worker.id, worker.host, worker.pid, worker.report::text
FROM aiotasks_worker AS worker
WHERE worker.backend = $1::text AND worker.lease_expires_at > statement_timestamp() AND worker.report IS NOT NULL
ORDER BY worker.host, worker.pid, worker.id
