-- As prune_jobs, those that say themselves for how long they are kept. Their index is on the epoch
-- seconds when that is over: of time zones it must know nothing, and there is one infinite number of
-- seconds in every PostgreSQL, but no infinite interval before 17.
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
