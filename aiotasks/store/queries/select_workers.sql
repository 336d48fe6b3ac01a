-- The workers of a backend, with the seconds that are left of their leases (negative: since when they
-- have expired).
-- $1 backend
SELECT
    worker.id, worker.host, worker.pid, worker.queues::text[], worker.concurrency, worker.threads,
    worker.listening, worker.version, worker.started_at,
    extract(epoch FROM worker.lease_expires_at - statement_timestamp())::double precision
FROM aiotasks_worker AS worker
WHERE worker.backend = $1::text
ORDER BY worker.host, worker.pid, worker.id
