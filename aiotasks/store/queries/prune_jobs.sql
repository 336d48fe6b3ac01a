-- Delete tasks of one status without a keep_result that were finished long enough ago, the oldest first. A task
-- stays for a minute in any case, because its worker may not have the reply yet, and looks for the row.
-- A ctid is safe here because SKIP LOCKED never waits: workers prune side by side.
-- $1 backend, $2 status, $3 seconds for which they are kept (NULL: forever), $4 where to begin, in epoch
-- seconds (before it are dead index entries of the rows that the last batch deleted), $5 how many at most
WITH gone AS (
    DELETE FROM aiotasks_task AS task
    WHERE task.ctid = ANY(ARRAY(
        SELECT old.ctid
        FROM aiotasks_task AS old
        WHERE old.backend = $1::text AND old.status = $2::text AND old.keep_result IS NULL
          AND old.finished_at >= to_timestamp($4::double precision)
          AND old.finished_at < statement_timestamp() - make_interval(secs => $3::double precision)
          AND old.finished_at < statement_timestamp() - interval '1 minute'
        ORDER BY old.finished_at
        LIMIT $5::integer
        FOR UPDATE SKIP LOCKED
    ))
    RETURNING task.finished_at
)
SELECT count(*), coalesce(date_part('epoch', max(gone.finished_at)), $4::double precision)
FROM gone
