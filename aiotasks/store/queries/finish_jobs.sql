-- Write the final state of tasks that their worker has run. A row that isn't RUNNING under the
-- claim id given (rescued, cancelled, claimed again) stays as it is: that is the fence. So does a row
-- that another transaction has locked (a cancel() inside of a long one), because it must not delay the
-- others: the worker tries it again, as a row that was changed just before it could be locked, whose ctid is new.
-- LATERAL has each row looked up by its id, whatever the planner expects of the table; `status || ''`
-- keeps it from reading all RUNNING rows by their index instead.
-- Nested errors, which aiotasks doesn't write, are replaced, because nothing can be added to them.
-- Returns one row: the ids of the rows that were finished, when, and the ids of those that somebody awaits, if any.
-- $1 ids, $2 claim ids, $3 final statuses, $4 return values (JSON text or NULL), $5 errors (JSON text or NULL):
-- where $2 to $5 have one value, it is for all rows
WITH outcome AS (
    SELECT
        each.id,
        coalesce(each.claim_id, given.claim_ids[1]) AS claim_id,
        coalesce(each.status, given.statuses[1]) AS status,
        CASE WHEN cardinality(given.return_values) = 1 THEN given.return_values[1] ELSE each.return_value END
            AS return_value,
        CASE WHEN cardinality(given.errors) = 1 THEN given.errors[1] ELSE each.error END AS error
    FROM (
        -- Each parameter once, because Django's drivers write its value wherever it is named.
        SELECT $1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::text[]
    ) AS given (ids, claim_ids, statuses, return_values, errors)
    CROSS JOIN LATERAL unnest(
        given.ids, given.claim_ids, given.statuses, given.return_values, given.errors
    ) AS each (id, claim_id, status, return_value, error)
), mine AS MATERIALIZED (
    SELECT held.ctid AS place, outcome.status, outcome.return_value, outcome.error
    FROM outcome
    CROSS JOIN LATERAL (
        SELECT task.ctid
        FROM aiotasks_task AS task
        WHERE task.id = outcome.id AND task.claim_id = outcome.claim_id AND task.status || '' = 'RUNNING'
        FOR UPDATE SKIP LOCKED
    ) AS held
), finished AS (
    UPDATE aiotasks_task AS task
    SET status = mine.status,
        return_value = mine.return_value::json,
        errors = CASE
            WHEN mine.error IS NULL THEN task.errors
            WHEN array_ndims(task.errors) > 1 THEN ARRAY[mine.error::json]
            ELSE task.errors || mine.error::json
        END,
        worker_id = NULL,
        -- Of most tasks the first comparison is with NULL.
        limit_held = CASE WHEN task.ordered = 'stop' AND mine.status = 'FAILED' THEN {held_by_failure} END,
        finished_at = statement_timestamp()
    FROM mine
    WHERE task.ctid = mine.place
    RETURNING task.id, task.awaited
)
SELECT
    coalesce(array_agg(finished.id), '{}'::uuid[]),
    statement_timestamp(),
    array_agg(finished.id) FILTER (WHERE finished.awaited IS NOT NULL)
FROM finished
