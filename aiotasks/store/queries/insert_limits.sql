-- Make the rows of keys that a claim has reported as new. A statement of its own, because it waits for whoever has written
-- one of the keys and not committed yet: it holds nothing that a claim could wait for, and the keys are in order.
-- $1 backend, $2 keys
INSERT INTO aiotasks_limit (backend, key, claimed_at, paid_at)
SELECT $1::text, new.key, statement_timestamp(), statement_timestamp()
FROM (SELECT DISTINCT each.key FROM unnest($2::text[]) AS each (key)) AS new
ORDER BY new.key
ON CONFLICT DO NOTHING
