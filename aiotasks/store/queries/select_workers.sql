-- The workers of a backend, with the seconds that are left of their leases (negative: since when they
-- have expired). The values returned fit into Python and JSON, whatever a row holds.
-- $1 backend
SELECT
    worker.id, worker.host, worker.pid,
    ARRAY(SELECT queue.name FROM unnest(worker.queues) AS queue (name) WHERE queue.name IS NOT NULL)::text[],
    worker.concurrency, worker.threads, worker.listening, worker.channel IS NOT NULL, worker.version,
    coalesce(worker.stuck_threads, 0),
    ARRAY(
        SELECT queue.most
        FROM unnest(worker.queues, worker.queue_limits) AS queue (name, most)
        WHERE queue.name IS NOT NULL
    )::integer[],
    least(greatest(worker.started_at, bounds.first), bounds.last),
    extract(
        epoch FROM least(greatest(worker.lease_expires_at, bounds.first), bounds.last) - statement_timestamp()
    )::double precision,
    coalesce(worker.claims_keyed, false),
    ARRAY(SELECT substr(said.text, 2) FROM unnest(worker.schedules) AS said (text) WHERE starts_with(said.text, ' '))
FROM aiotasks_worker AS worker
CROSS JOIN (VALUES ('1900-01-01Z'::timestamptz, '9000-01-01Z'::timestamptz)) AS bounds (first, last)
WHERE worker.backend = $1::text
ORDER BY worker.host, worker.pid, worker.id
