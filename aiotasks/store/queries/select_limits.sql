-- The limits and keys of which there is something to say: what operators have set or paused, what is closed, what takes
-- up places now, and lines that a failure has stopped. In the order of the keys.
-- Returns key; how many tasks run, and how many of a line in strict order wait to run again; the id of the one that has
-- stopped it; for how many seconds the key is closed; since when it is paused and why; concurrency, rate, pace, burst
-- and weight by an operator; the bucket's level, and its age in seconds.
-- $1 backend, $2 a limit's name or a key (NULL: all; its own row is returned whatever it has), $3 how many keys at
-- most,
-- $4 whether to return only those that are paused, closed or stopped, or wait for a task that runs again
SELECT
    each.key, busy.running, busy.waiting, busy.stopped_by,
    CASE WHEN own.closed_until > statement_timestamp() THEN date_part(
        'epoch', least(own.closed_until, statement_timestamp() + interval '1 year') - statement_timestamp()
    ) END,
    own.paused_at, own.pause_reason, own.concurrency, own.rate, own.pace, own.burst, own.weight,
    own.level, date_part('epoch', statement_timestamp() - own.claimed_at)
FROM (
    (
        -- By name: not a range of the index, because the database's order needn't keep the keys of a name together.
        SELECT DISTINCT task.limit_held::text AS key
        FROM aiotasks_task AS task
        WHERE task.backend = $1::text AND task.limit_held IS NOT NULL
          AND ($2::text IS NULL OR task.limit_held = $2::text OR split_part(task.limit_held, ':', 1) = $2::text)
          AND (NOT $4::boolean OR task.status || '' <> 'RUNNING')
        ORDER BY key
        LIMIT $3::integer
    )
    UNION
    (
        SELECT said.key::text
        FROM aiotasks_limit AS said
        WHERE said.backend = $1::text
          AND ($2::text IS NULL OR said.key = $2::text OR split_part(said.key, ':', 1) = $2::text)
          AND (
              said.key = $2::text
              OR said.paused_at IS NOT NULL
              OR said.closed_until > statement_timestamp()
              OR (NOT $4::boolean AND num_nonnulls(said.concurrency, said.pace, said.burst, said.weight) > 0)
          )
        ORDER BY said.key
        LIMIT $3::integer
    )
    ORDER BY key
    LIMIT $3::integer
) AS each
CROSS JOIN LATERAL (
    SELECT
        count(*) FILTER (WHERE held.status = 'RUNNING') AS running,
        count(*) FILTER (WHERE held.status IN ('SCHEDULED', 'READY') AND held.ordered IS NOT NULL) AS waiting,
        (array_agg(held.id) FILTER (
            WHERE held.status = 'FAILED' AND held.ordered = 'stop' AND held.cancel_requested_at IS NULL
        ))[1] AS stopped_by
    FROM (
        SELECT task.id, task.status, task.ordered, task.cancel_requested_at
        FROM aiotasks_task AS task
        WHERE task.backend = $1::text AND task.limit_held = each.key
        LIMIT 1000
    ) AS held
) AS busy
LEFT JOIN LATERAL (
    SELECT one.* FROM aiotasks_limit AS one WHERE one.backend = $1::text AND one.key = each.key LIMIT 1
) AS own ON true
ORDER BY each.key
