-- Delete tasks of one status without a keep_result that were finished long enough ago, the oldest first. A task
-- stays for a minute in any case, because its worker may not have the reply yet, and looks for the row. One that has
-- stopped the line of its limit's key stays until an operator has the line go on, because it would go on by itself.
-- A ctid is safe here because SKIP LOCKED never waits: workers prune side by side.
-- The DELETE doesn't wait for the disk, because rows that a crash of the server brings back are deleted again;
-- set_config is local to this statement.
-- Returns how many it deleted, when the last of them was finished in epoch seconds ($4 if there are none), and
-- the seconds from the first's end to the last's.
-- $1 backend, $2 status, $3 seconds for which they are kept (NULL: forever), $4 where to begin, in epoch
-- seconds (before it are dead index entries of the rows that the last batch deleted), $5 how many at most
WITH setting AS MATERIALIZED (
    SELECT set_config('synchronous_commit', 'off', true)
),
gone AS (
    DELETE FROM aiotasks_task AS task
    WHERE task.ctid = ANY(ARRAY(
        SELECT old.ctid
        FROM setting
        CROSS JOIN LATERAL (
            SELECT prunable.ctid
            FROM aiotasks_task AS prunable
            WHERE prunable.backend = $1::text AND prunable.status = $2::text AND prunable.keep_result IS NULL
              AND prunable.finished_at >= to_timestamp($4::double precision)
              AND prunable.finished_at < statement_timestamp() - make_interval(secs => $3::double precision)
              AND prunable.finished_at < statement_timestamp() - interval '1 minute'
              AND (prunable.limit_held IS NULL OR prunable.ordered IS DISTINCT FROM 'stop'
                  OR prunable.cancel_requested_at IS NOT NULL)
            ORDER BY prunable.finished_at
            LIMIT $5::integer
            FOR UPDATE SKIP LOCKED
        ) AS old
    ))
    RETURNING date_part('epoch', task.finished_at) AS finished
)
SELECT
    count(*), coalesce(max(gone.finished), $4::double precision), coalesce(max(gone.finished) - min(gone.finished), 0)
FROM gone
