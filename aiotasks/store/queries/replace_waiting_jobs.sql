-- Give tasks that wait other arguments, another priority and other metadata, and another time unless they are to keep
-- theirs. A retry that waits begins again with all of its attempts. A task that waits no more, has expired or has lost
-- its key isn't returned: its key is free. Waits for locked rows (a claim) as long as $10 says at most (55P03).
-- A task whose limit key changes gets a place in the other's line, by its time, and holds none any more.
-- One row of NULLs if there are none.
-- $1 ids, $2 unique keys, $3 args, $4 kwargs (JSON text); the same for all: $5 backend, $6 priority, $7 run_after,
-- $8 expires (seconds), $9 whether they keep their time, $10 lock_timeout, $11 metadata (JSON text),
-- $12 limit keys of each (NULL: none), $13 whether their limit is in order
WITH limits AS MATERIALIZED (
    SELECT current_setting('lock_timeout') AS before, set_config('lock_timeout', $10::text, true) AS now
), mine AS MATERIALIZED (
    SELECT found.id, each.args, each.kwargs, each.limit_key
    FROM limits
    -- One look-up after the other, in the order of the keys. A join with the array would compare all with all, in
    -- sessions without hash and merge joins.
    CROSS JOIN (
        SELECT *
        FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $12::text[])
            AS new (id, key, args, kwargs, limit_key)
        -- Always true. By these the planner expects one row instead of ten, for which it wouldn't look up each below
        -- where it takes the table for nearly empty, but read all of it.
        WHERE new.key >= '' AND new.id >= '00000000-0000-0000-0000-000000000000'
        ORDER BY new.key
    ) AS each
    CROSS JOIN LATERAL (
        SELECT task.id
        FROM aiotasks_task AS task
        WHERE task.id = each.id AND task.backend = $5::text AND task.unique_key = each.key
          AND task.status IN ('SCHEDULED', 'READY')
          AND (task.expires_at IS NULL OR task.expires_at > statement_timestamp())
        FOR UPDATE
    ) AS found
), replaced AS (
    UPDATE aiotasks_task AS task
    SET status = CASE
            WHEN $9::boolean THEN task.status
            WHEN $7::timestamptz > statement_timestamp() THEN 'SCHEDULED'
            ELSE 'READY'
        END,
        args = mine.args::json,
        kwargs = mine.kwargs::json,
        priority = $6::smallint,
        metadata = $11::json,
        lane = CASE WHEN mine.limit_key IS NULL THEN rtrim(task.lane, '+') ELSE rtrim(task.lane, '+') || '+' END,
        limit_key = mine.limit_key,
        limit_place = CASE
            WHEN mine.limit_key IS NULL THEN NULL
            WHEN mine.limit_key = task.limit_key AND ($9::boolean OR task.limit_held IS NOT NULL) THEN task.limit_place
            WHEN mine.limit_key = task.limit_key
                THEN greatest($7::timestamptz, least(task.limit_place, statement_timestamp()))
            ELSE greatest(CASE WHEN $9::boolean THEN task.run_after ELSE $7::timestamptz END, statement_timestamp())
        END,
        -- A task that waits for its next attempt goes on holding its line.
        limit_held = CASE WHEN mine.limit_key = task.limit_key AND $13::text IS NOT NULL THEN task.limit_held END,
        ordered = CASE WHEN mine.limit_key IS NOT NULL THEN $13::text END,
        failures = NULL,
        run_after = CASE WHEN $9::boolean THEN task.run_after ELSE $7::timestamptz END,
        asked_run_after = CASE WHEN $9::boolean THEN task.asked_run_after END,
        expires_at = CASE
            WHEN $9::boolean THEN task.expires_at
            ELSE greatest($7::timestamptz, statement_timestamp()) + make_interval(secs => $8::double precision)
        END,
        ready_at = CASE
            WHEN $9::boolean THEN task.ready_at
            WHEN $7::timestamptz > statement_timestamp() THEN NULL
            ELSE coalesce(task.ready_at, statement_timestamp())
        END
    FROM mine
    WHERE task.id = mine.id
    RETURNING
        {job_columns}
)
SELECT set_config('lock_timeout', limits.before, true), replaced.*
FROM limits
-- The count has all rows locked before the first is returned, and with it the setting put back.
CROSS JOIN (SELECT count(*) FROM replaced) AS first
LEFT JOIN replaced ON true
