-- The live workers of all backends that share this database, those that are alike counted together. Reads no more
-- columns than a site's role needs for wake_workers.
SELECT
    worker.backend, worker.concurrency, worker.threads, worker.listening, worker.channel IS NOT NULL,
    count(*)::integer
FROM aiotasks_worker AS worker
WHERE worker.lease_expires_at > statement_timestamp()
GROUP BY worker.backend, worker.concurrency, worker.threads, worker.listening, worker.channel IS NOT NULL
ORDER BY worker.backend, worker.concurrency, worker.threads
