-- How tasks stand inside of the transaction that is open here: which have ended, and which of the others it has
-- changed or locked itself, so that nobody ends them before it does.
-- A version of a row that this transaction sees, and whose own transaction is in progress, is of this one or of one of
-- its savepoints, whose numbers are higher. The bound keeps rows from being asked for that are so old that the 32 bits
-- of their numbers have come round again: pg_xact_status() raises for a number that is yet to come.
-- Returns one row: the ids of the tasks that have ended, of those that are changed or locked here, and of the others
-- that are there (NULL: none).
-- $1 ids, $2 backend
WITH own AS MATERIALIZED (
    SELECT
        pg_current_xact_id_if_assigned()::text::bigint AS number,
        pg_snapshot_xmax(pg_current_snapshot())::text::bigint + 1048576 AS bound
), found AS MATERIALIZED (
    SELECT
        task.id,
        task.finished_at IS NOT NULL AS has_ended,
        own.bound,
        own.number + ((task.xmin::text::bigint - own.number) & 4294967295) AS written_by,
        coalesce(task.xmax::text::bigint = own.number & 4294967295, false) AS is_locked
    FROM own
    CROSS JOIN unnest($1::uuid[]) AS asked (id)
    CROSS JOIN LATERAL (
        SELECT each.id, each.finished_at, each.xmin, each.xmax
        FROM aiotasks_task AS each
        WHERE each.id = asked.id AND each.backend = $2::text
        OFFSET 0
    ) AS task
), judged AS MATERIALIZED (
    SELECT
        found.id,
        found.has_ended,
        found.is_locked OR CASE
            WHEN found.written_by < found.bound
                THEN coalesce(pg_xact_status(found.written_by::text::xid8) = 'in progress', false)
            ELSE false
        END AS is_held
    FROM found
)
SELECT
    array_agg(judged.id) FILTER (WHERE judged.has_ended),
    array_agg(judged.id) FILTER (WHERE NOT judged.has_ended AND judged.is_held),
    array_agg(judged.id) FILTER (WHERE NOT judged.has_ended AND NOT judged.is_held)
FROM judged
