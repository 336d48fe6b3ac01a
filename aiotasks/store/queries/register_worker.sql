-- Store a worker's row, with a lease by the database's clock.
-- $1 id, $2 backend, $3 host, $4 pid, $5 queue names (empty: any), $6 loop slots, $7 thread slots,
-- $8 version, $9 seconds of the lease, $10 the channel on which it alone LISTENs (NULL: it doesn't),
-- $11 of each queue how many tasks at a time (NULL: no limit)
INSERT INTO aiotasks_worker (
    id, backend, host, pid, queues, concurrency, threads, version, started_at, lease_expires_at, channel,
    queue_limits, claims_keyed
)
VALUES (
    $1::uuid, $2::text, $3::text, $4::integer, $5::text[], $6::integer, $7::integer, $8::text,
    statement_timestamp(), statement_timestamp() + make_interval(secs => $9::double precision), $10::text,
    $11::integer[], true
)
ON CONFLICT (id) DO NOTHING
