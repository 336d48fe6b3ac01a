-- Renew a worker's lease, and store whether NOTIFY wakes the worker. Returns no row if the worker has no row: its
-- tasks were taken away, and it must register again. Returns false, and renews nothing, if the lease has
-- expired by the database's clock, unless $4 says to renew it all the same: as long as the row stands, nothing
-- was taken from the worker. (The worker learns of it before its lease is live again, because other leases may be
-- as stale then: see rescue_jobs.)
-- The lease runs from the statement's start, so a lock that delays the statement shortens the lease.
-- $1 worker id, $2 seconds, $3 whether it listens (NULL: not known), $4 whether to renew an expired lease,
-- $5 seconds that the lease must have left at the least
WITH mine AS MATERIALIZED (
    SELECT worker.id, $4::boolean OR worker.lease_expires_at
            > clock_timestamp() + make_interval(secs => $5::double precision) AS goes
    FROM aiotasks_worker AS worker
    WHERE worker.id = $1::uuid
), renewed AS (
    UPDATE aiotasks_worker AS worker
    SET lease_expires_at = statement_timestamp() + make_interval(secs => $2::double precision),
        listening = $3::boolean
    FROM mine
    WHERE worker.id = mine.id AND mine.goes
    RETURNING worker.id
)
SELECT mine.goes AND EXISTS (SELECT FROM renewed)
FROM mine
