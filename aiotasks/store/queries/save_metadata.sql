-- Write the metadata of tasks that run, each fenced by its claim, and only over what its owner has seen last: what
-- somebody else has written meanwhile is returned, to be merged by key and saved again. (Not here: json_each fails
-- for a key or value with a \u0000, and with it the statement.)
-- The commit is waited for: the owner writes only what has changed since, so what a crash of the server takes back
-- would never be written again.
-- A row that another transaction has locked must not delay the others: it comes back as neither written nor changed,
-- as does a row that was changed just before it could be locked, whose ctid is new. What doesn't come back isn't
-- RUNNING under its claim id.
-- $1 ids, $2 claim ids, $3 metadata (JSON text or NULL), $4 what was there when they were last seen (likewise)
WITH found AS MATERIALIZED (
    SELECT task.id, saved.claim_id, saved.metadata, saved.seen
    FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[]) AS saved (id, claim_id, metadata, seen)
    CROSS JOIN LATERAL (
        SELECT each.id
        FROM aiotasks_task AS each
        WHERE each.id = saved.id AND each.claim_id = saved.claim_id AND each.status || '' = 'RUNNING'
        OFFSET 0
    ) AS task
), mine AS MATERIALIZED (
    SELECT
        held.ctid AS place,
        held.id,
        held.there,
        found.metadata,
        held.there IS NOT DISTINCT FROM found.seen AS is_as_seen
    FROM found
    CROSS JOIN LATERAL (
        SELECT task.ctid, task.id, task.metadata::text AS there
        FROM aiotasks_task AS task
        WHERE task.id = found.id AND task.claim_id = found.claim_id AND task.status || '' = 'RUNNING'
        FOR NO KEY UPDATE SKIP LOCKED
    ) AS held
), written AS (
    UPDATE aiotasks_task AS task
    SET metadata = mine.metadata::json
    FROM mine
    WHERE task.ctid = mine.place AND mine.is_as_seen
    RETURNING task.id, task.awaited
)
SELECT
    found.id,
    written.id IS NOT NULL,
    coalesce(NOT mine.is_as_seen, false),
    CASE WHEN NOT mine.is_as_seen THEN mine.there END,
    written.awaited
FROM found
LEFT JOIN mine ON mine.id = found.id
LEFT JOIN written ON written.id = found.id
