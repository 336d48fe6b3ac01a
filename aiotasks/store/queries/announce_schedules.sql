-- Tell the other workers which schedules a worker's code declares: they stop none of them while its lease lasts.
-- $1 worker id, $2 names, and behind a space each what keeps it from declaring some
UPDATE aiotasks_worker AS worker
SET schedules = $2::text[]
WHERE worker.id = $1::uuid
