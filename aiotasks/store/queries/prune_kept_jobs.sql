-- Delete tasks with a keep_result whose time has ended, as prune_jobs. Their index is on the epoch
-- seconds of that end: it must not depend on a time zone, and infinity is a number of seconds in every
-- PostgreSQL, but an interval only from 17 on.
-- $1 backend, $2 where to begin, in epoch seconds, $3 how many at most
WITH gone AS (
    DELETE FROM aiotasks_task AS task
    WHERE task.ctid = ANY(ARRAY(
        SELECT old.ctid
        FROM aiotasks_task AS old
        WHERE old.backend = $1::text AND old.status IN ('SUCCESSFUL', 'FAILED')
          AND old.keep_result IS NOT NULL
          AND date_part('epoch', old.finished_at AT TIME ZONE 'UTC') + old.keep_result >= $2::double precision
          AND date_part('epoch', old.finished_at AT TIME ZONE 'UTC') + old.keep_result
              < date_part('epoch', statement_timestamp())
          AND old.finished_at < statement_timestamp() - interval '1 minute'
        ORDER BY date_part('epoch', old.finished_at AT TIME ZONE 'UTC') + old.keep_result
        LIMIT $3::integer
        FOR UPDATE SKIP LOCKED
    ))
    RETURNING date_part('epoch', task.finished_at AT TIME ZONE 'UTC') + task.keep_result AS over
)
SELECT count(*), coalesce(max(gone.over), $2::double precision)
FROM gone
