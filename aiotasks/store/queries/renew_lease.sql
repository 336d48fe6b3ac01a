-- Renew a worker's lease, and store whether NOTIFY wakes the worker, how many threads are stuck, and its report. Returns
-- no row if the worker has no row: its tasks were taken away, and it must register again. Returns false, and renews
-- nothing, if the lease has expired by the database's clock, unless $4 says to renew it all the same: as long as the row
-- stands, nothing was taken from the worker. (The worker learns of it before its lease is live again, because other
-- leases may be as stale then: see rescue_jobs.)
-- The lease runs from the statement's start, so a lock that delays the statement shortens the lease.
--
-- Returns also, for the turns that workers take (aiotasks/worker/fleet.py): how many live workers the backend has,
-- and how many of these have a lower id; the same of those that find every task that this one could find, and are
-- woken by NOTIFY; whether the lease of another worker has expired; and the database's clock. A row that has
-- never been renewed (listening is NULL) isn't counted, because it may be that of a drain(). A worker that NOTIFY
-- doesn't wake is alone among those that it wakes.
-- The statement's start is also when the other rows were read: by a later time their leases would look too old.
-- $1 worker id, $2 seconds, $3 whether it listens (NULL: not known), $4 whether to renew an expired lease,
-- $5 seconds that the lease must have left at the least, $6 threads that don't come back from tasks,
-- $7 the report (NULL: leave the one before)
WITH mine AS MATERIALIZED (
    SELECT worker.id, worker.backend, worker.queues, worker.concurrency, worker.threads,
           $4::boolean OR worker.lease_expires_at
               > clock_timestamp() + make_interval(secs => $5::double precision) AS goes
    FROM aiotasks_worker AS worker
    WHERE worker.id = $1::uuid
), renewed AS (
    UPDATE aiotasks_worker AS worker
    SET lease_expires_at = statement_timestamp() + make_interval(secs => $2::double precision),
        listening = $3::boolean,
        stuck_threads = $6::integer,
        report = coalesce($7::text::json, worker.report)
    FROM mine
    WHERE worker.id = mine.id AND mine.goes
    RETURNING worker.id
)
SELECT
    mine.goes AND EXISTS (SELECT FROM renewed),
    1 + count(*) FILTER (WHERE other.is_counted),
    count(*) FILTER (WHERE other.is_counted AND other.id < mine.id),
    1 + count(*) FILTER (WHERE other.is_peer),
    count(*) FILTER (WHERE other.is_peer AND other.id < mine.id),
    count(*) FILTER (WHERE NOT other.is_live) > 0,
    extract(epoch FROM clock_timestamp())::double precision
FROM mine
LEFT JOIN LATERAL (
    SELECT worker.id, live.is_live,
           live.is_live AND worker.listening IS NOT NULL AS is_counted,
           live.is_live AND worker.listening AND $3::boolean
               AND (
                   cardinality(worker.queues) = 0
                   OR (cardinality(mine.queues) > 0 AND worker.queues @> mine.queues)
               )
               AND (worker.concurrency > 0 OR mine.concurrency = 0)
               AND (worker.threads > 0 OR mine.threads = 0) AS is_peer
    FROM aiotasks_worker AS worker
    CROSS JOIN LATERAL (SELECT worker.lease_expires_at > statement_timestamp() AS is_live) AS live
    WHERE worker.backend = mine.backend AND worker.id <> mine.id
) AS other ON true
GROUP BY mine.id, mine.goes
