-- Whether a lock on the table of workers keeps every worker from registering and from renewing its lease: an
-- operator's LOCK TABLE, an ALTER, a CREATE INDEX, or one of these that waits. A lock on a single row isn't
-- counted, because it concerns one worker.
SELECT EXISTS (
    SELECT FROM pg_locks AS held
    WHERE held.locktype = 'relation' AND held.relation = to_regclass('aiotasks_worker')
      AND held.database = (SELECT here.oid FROM pg_database AS here WHERE here.datname = current_database())
      AND held.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
)
