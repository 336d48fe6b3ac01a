-- Whether somebody has locked the table of workers, or waits for a lock, so that no worker can renew its lease
-- or register: an operator's LOCK TABLE, an ALTER, a CREATE INDEX. (A lock on a row is one worker's matter,
-- and isn't here.)
SELECT EXISTS (
    SELECT FROM pg_locks AS held
    WHERE held.locktype = 'relation' AND held.relation = to_regclass('aiotasks_worker')
      AND held.database = (SELECT here.oid FROM pg_database AS here WHERE here.datname = current_database())
      AND held.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
)
