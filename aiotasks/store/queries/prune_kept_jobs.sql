-- Delete tasks with a keep_result whose time has ended, as prune_jobs. Their index is on the epoch
-- seconds of that end: it must not depend on a time zone, and infinity is a number of seconds in every
-- PostgreSQL, but an interval only from 17 on.
-- Returns how many it deleted, when the last one's time ended in epoch seconds ($2 if there are none), and the
-- seconds between the first's and the last's.
-- $1 backend, $2 where to begin, in epoch seconds, $3 how many at most
WITH setting AS MATERIALIZED (
    SELECT set_config('synchronous_commit', 'off', true)
),
gone AS (
    DELETE FROM aiotasks_task AS task
    WHERE task.ctid = ANY(ARRAY(
        SELECT old.ctid
        FROM setting
        CROSS JOIN LATERAL (
            SELECT kept.ctid
            FROM aiotasks_task AS kept
            WHERE kept.backend = $1::text AND kept.status IN ('SUCCESSFUL', 'FAILED')
              AND kept.keep_result IS NOT NULL
              AND date_part('epoch', kept.finished_at AT TIME ZONE 'UTC') + kept.keep_result >= $2::double precision
              AND date_part('epoch', kept.finished_at AT TIME ZONE 'UTC') + kept.keep_result
                  < date_part('epoch', statement_timestamp())
              AND kept.finished_at < statement_timestamp() - interval '1 minute'
              AND (kept.limit_held IS NULL OR kept.ordered IS DISTINCT FROM 'stop'
                  OR kept.cancel_requested_at IS NOT NULL)
            ORDER BY date_part('epoch', kept.finished_at AT TIME ZONE 'UTC') + kept.keep_result
            LIMIT $3::integer
            FOR UPDATE SKIP LOCKED
        ) AS old
    ))
    RETURNING date_part('epoch', task.finished_at AT TIME ZONE 'UTC') + task.keep_result AS over
)
SELECT count(*), coalesce(max(gone.over), $2::double precision), coalesce(max(gone.over) - min(gone.over), 0)
FROM gone
