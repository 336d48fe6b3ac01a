-- Forget what operators have said of a limit or a key, so that it is as the code says. A pause stays.
-- Returns a row if there was anything.
-- $1 backend, $2 key
UPDATE aiotasks_limit AS own
SET concurrency = NULL, rate = NULL, pace = NULL, burst = NULL, weight = NULL
WHERE own.backend = $1::text AND own.key = $2::text
  AND num_nonnulls(own.concurrency, own.pace, own.burst, own.weight) > 0
RETURNING true
