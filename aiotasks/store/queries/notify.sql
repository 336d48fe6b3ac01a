-- Wake listeners. Sent in a transaction of its own, after the writing one: a commit that notifies
-- holds a lock over the whole cluster while it waits for the disk.
-- $1 channel, $2 payloads
SELECT pg_notify($1::text, payload) FROM unnest($2::text[]) AS payload
