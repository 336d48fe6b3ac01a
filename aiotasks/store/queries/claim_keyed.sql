-- Take READY tasks of some keys of limits, for a worker whose lease is live; for any other, take nothing.
--
-- No limit is ever exceeded. The statement counts what takes up places in its own snapshot, and locks the key's row of
-- aiotasks_limit only in the version that this snapshot has seen. Who takes a task writes a new version. So a claim
-- whose snapshot is older than the last claim of the key finds another version, and takes nothing: it is "busy". The
-- version is told by its xmin. (Not by its ctid: minor releases of PostgreSQL before the end of 2025 don't compare that
-- again with the row that they have found behind a concurrent update.) Nothing is counted up or down: nothing can leak.
-- The claim never waits: what it locks is SKIP LOCKED, what it updates it has locked. It inserts nothing, because an
-- INSERT waits for whoever has written the key: a row that isn't there is reported as new (insert_limits).
-- A claim must survive a crash of the server: its places would be given away again, while the tasks run. So it waits
-- for the disk, as claim_jobs needn't.
--
-- A rate is a bucket that leaks a start in `pace` seconds, as of claimed_at, by the database's clock: see
-- docs/internals/limits.md. A key that has no concurrency, rate or order has no row, and isn't locked (is_free).
-- In strict order one task runs at a time. A task that was claimed holds its line until it is final, also READY again
-- (begun); else the first of the line is next, over all queues and lanes, and no other if it can't be taken. A row
-- without `ordered` was enqueued before its limit had an order, and comes by the line of its queue and lane.
-- Of a limit that no rule is given for nothing is taken, unless an operator has set a concurrency or a rate: then as in
-- strict order, which is right for any tasks.
-- Pauses and expiry as in claim_jobs. Each look-up is a LATERAL with LIMIT, so that its plan can't depend on what the
-- planner thinks of the tables.
--
-- $1 worker id, $2 a claim id never used before, $3 backend, $4 lane as it is stored, $5 how many tasks at most;
-- per key, in the order to try: $6 queue names (or one for all), $7 keys, $8 the only task to take (a suspect; NULL, or
-- none for all: any but those);
-- of limits, as the code says: $9 names, $10 concurrency, $11 pace, $12 burst, $13 weight, $14 in strict order.
-- Returns at least one row: two JSON texts, in the first row alone, the row's number, and the columns of a claimed task
-- (NULLs: there is none). The texts say what was seen of each key (its number in the order of $7, once if it stands
-- there twice; whether it is paused, unknown, and new; seconds for which it is closed; places; starts by its rate;
-- room: the least of these and of its turn; pace; seconds to its next start; weight), NULL if the lease is over; and of
-- each key that was locked its number, how many tasks it gave, and the queue and lane of the first task of its line, if
-- that wasn't taken.
WITH claimer AS MATERIALIZED (
    SELECT
        clock_timestamp() AS moment,
        ARRAY(
            SELECT CASE pause.kind WHEN 'queue' THEN 'queue ' ELSE '' END || pause.name
            FROM aiotasks_pause AS pause
            WHERE pause.backend || '' = $3::text
              AND (pause.until IS NULL OR pause.until > statement_timestamp())
        ) AS paused
    FROM aiotasks_worker AS worker
    WHERE worker.id = $1::uuid AND worker.lease_expires_at > clock_timestamp()
), candidate AS MATERIALIZED (
    -- Each key once: what is taken at its second place wouldn't count what was taken at the first.
    SELECT DISTINCT ON (one.key)
        coalesce(one.queue_name, ($6::text[])[1]) AS queue_name, one.key, one.id, one.n,
        split_part(one.key, ':', 1) AS name
    FROM unnest($6::text[], $7::text[], $8::uuid[]) WITH ORDINALITY AS one (queue_name, key, id, n)
    ORDER BY one.key, one.n
), named AS MATERIALIZED (
    -- What is said of each limit, by an operator or else by the code.
    SELECT
        code.name, said.paused_at,
        code.at IS NULL AND num_nonnulls(said.concurrency, said.pace) = 0 AS is_unknown,
        coalesce(said.concurrency, ($10::integer[])[code.at]) AS concurrency,
        coalesce(said.pace, ($11::double precision[])[code.at]) AS pace,
        coalesce(said.burst, ($12::integer[])[code.at], 1) AS burst,
        coalesce(said.weight, ($13::integer[])[code.at], 1) AS weight,
        coalesce(($14::boolean[])[code.at], true) AS ordered
    FROM (
        SELECT limits.name, array_position($9::text[], limits.name) AS at
        FROM (SELECT DISTINCT candidate.name FROM candidate) AS limits
    ) AS code
    LEFT JOIN LATERAL (
        SELECT one.* FROM aiotasks_limit AS one WHERE one.backend = $3::text AND one.key = code.name LIMIT 1
    ) AS said ON true
), ruled AS MATERIALIZED (
    SELECT
        candidate.queue_name, candidate.key, candidate.id, candidate.n, claimer.moment, claimer.paused,
        own.place, own.version, own.busy_since, named.ordered, rate.pace,
        CASE WHEN named.ordered THEN least(coalesce(own.concurrency, named.concurrency, 1), 1)
            ELSE coalesce(own.concurrency, named.concurrency) END AS concurrency,
        coalesce(own.burst, named.burst) AS burst,
        greatest(coalesce(own.weight, named.weight), 1) AS weight,
        named.is_unknown AND num_nonnulls(own.concurrency, own.pace) = 0 AS is_unknown,
        own.paused_at IS NOT NULL OR named.paused_at IS NOT NULL
            OR 'queue ' || candidate.queue_name = ANY(claimer.paused) AS is_paused,
        CASE
            WHEN rate.pace IS NULL OR own.claimed_at IS NULL THEN 0
            -- The clock has been set back: one start is let through, so that nothing is closed for as long as that.
            WHEN own.claimed_at > claimer.moment + interval '1 s'
                THEN least(own.level, coalesce(own.burst, named.burst) - 1)
            ELSE greatest(0, own.level - greatest(0, since.seconds) / rate.pace)
        END AS level,
        -- Within a year: an interval to 'infinity' is an error before PostgreSQL 17.
        date_part('epoch', least(
            greatest(own.closed_until, claimer.moment), claimer.moment + interval '1 year'
        ) - claimer.moment) AS closed_for
    FROM claimer
    CROSS JOIN candidate
    JOIN named ON named.name = candidate.name
    LEFT JOIN LATERAL (
        SELECT one.ctid AS place, one.xmin AS version, one.*
        FROM aiotasks_limit AS one
        WHERE one.backend = $3::text AND one.key = candidate.key
        LIMIT 1
    ) AS own ON true
    CROSS JOIN LATERAL (SELECT nullif(coalesce(own.pace, named.pace), 0) AS pace) AS rate
    CROSS JOIN LATERAL (
        SELECT date_part('epoch', claimer.moment - greatest(
            least(own.claimed_at, claimer.moment + interval '1 day'), claimer.moment - interval '10 years'
        )) AS seconds
    ) AS since
), seen AS MATERIALIZED (
    SELECT
        ruled.*, rate.starts, busy.begun,
        ruled.concurrency - busy.number AS places,
        greatest(0, least(
            $5::integer, turn.size * ruled.weight, rate.starts, ruled.concurrency - busy.number,
            CASE WHEN ruled.ordered THEN 1 END
        ))::integer AS room,
        ruled.concurrency IS NULL AND ruled.pace IS NULL AND ruled.busy_since IS NULL AS is_free
    FROM ruled
    CROSS JOIN (SELECT greatest(1, $5::integer / sum(ruled.weight)) AS size FROM ruled) AS turn
    CROSS JOIN LATERAL (
        SELECT CASE
            WHEN ruled.is_paused OR ruled.is_unknown OR ruled.closed_for > 0 THEN 0
            -- The small number is for the rounding of what has leaked.
            WHEN ruled.pace IS NOT NULL THEN greatest(0, floor(ruled.burst - ruled.level + 1e-9))::integer
        END AS starts
    ) AS rate
    CROSS JOIN LATERAL (
        SELECT
            (count(*) FILTER (WHERE one.status <> 'READY'))::integer AS number,
            (array_agg(one.id) FILTER (WHERE one.status = 'READY'))[1] AS begun
        FROM (
            SELECT held.id, held.status
            FROM aiotasks_task AS held
            WHERE held.backend = $3::text AND held.limit_held = ruled.key
              -- Passes over the dead entries that an old snapshot keeps.
              AND held.limit_place >= coalesce(ruled.busy_since, '-infinity')
              AND CASE held.status
                  WHEN 'RUNNING' THEN true
                  WHEN 'FAILED'
                      THEN ruled.ordered AND held.ordered = 'stop' AND held.cancel_requested_at IS NULL
                  WHEN 'SUCCESSFUL' THEN false
                  ELSE ruled.ordered AND held.ordered IS NOT NULL
              END
            ORDER BY held.limit_place
            -- Of a line there is one, or as many as ran when its limit was given an order.
            LIMIT CASE WHEN rate.starts = 0 THEN 0 WHEN ruled.ordered THEN 100 ELSE coalesce(ruled.concurrency, 0) END
        ) AS one
    ) AS busy
    ORDER BY ruled.n
), head AS MATERIALIZED (
    SELECT
        open.n, CASE WHEN NOT open.is_free THEN open.place END AS place, open.moment,
        open.concurrency IS NOT NULL AS is_counted, open.pace, open.level,
        first.place AS task, first.limit_place, first.queue_name, first.lane
    FROM seen AS open
    CROSS JOIN LATERAL (
        SELECT held.key
        FROM (
            SELECT one.key
            FROM aiotasks_limit AS one
            WHERE one.backend = $3::text AND one.key = open.key AND one.xmin = open.version AND NOT open.is_free
            FOR UPDATE SKIP LOCKED
        ) AS held
        UNION ALL
        SELECT open.key WHERE open.is_free
    ) AS held
    -- By held.key: first the key's row is locked, and then tasks. One row without a task where there are none.
    LEFT JOIN LATERAL (
        SELECT ready.place, ready.limit_place, NULL::text AS queue_name, NULL::text AS lane
        FROM (
            SELECT task.ctid AS place, task.limit_place
            FROM aiotasks_task AS task
            WHERE task.status = 'READY' AND task.backend = $3::text AND task.queue_name = open.queue_name
              AND task.lane = $4::text AND task.limit_key = held.key AND NOT open.ordered AND open.id IS NULL
              AND task.limit_place IS NOT NULL
              AND task.crashes < 2
              AND (task.expires_at IS NULL OR task.expires_at > statement_timestamp())
              AND task.task_path <> ALL(open.paused)
            ORDER BY task.priority DESC, task.limit_place, task.id
            LIMIT open.room
            FOR UPDATE SKIP LOCKED
        ) AS ready
        UNION ALL
        SELECT suspect.place, suspect.limit_place, NULL, NULL
        FROM (
            SELECT task.ctid AS place, task.limit_place
            FROM aiotasks_task AS task
            WHERE task.id = open.id AND task.backend = $3::text AND task.status || '' = 'READY'
              AND task.queue_name = open.queue_name AND task.lane = $4::text
              AND task.limit_key = held.key AND NOT open.ordered
              AND task.limit_place IS NOT NULL
              AND (task.expires_at IS NULL OR task.expires_at > statement_timestamp())
              AND task.task_path <> ALL(open.paused)
            FOR UPDATE SKIP LOCKED
        ) AS suspect
        UNION ALL
        SELECT mine.place, next.limit_place, next.queue_name, next.lane
        FROM (
            SELECT
                task.ctid AS place, task.id, task.limit_place, task.queue_name, task.lane, task.task_path,
                task.expires_at, task.crashes, task.ordered
            FROM aiotasks_task AS task
            WHERE task.id = open.begun AND task.status || '' = 'READY'
            UNION ALL
            SELECT * FROM (
                SELECT
                    task.ctid AS place, task.id, task.limit_place, task.queue_name, task.lane, task.task_path,
                    task.expires_at, task.crashes, task.ordered
                FROM aiotasks_task AS task
                WHERE task.status = 'READY' AND task.backend = $3::text AND task.queue_name = open.queue_name
                  AND task.lane = $4::text AND task.limit_key = held.key AND open.ordered AND open.begun IS NULL
                ORDER BY task.priority DESC, task.limit_place, task.id
                LIMIT 1
            ) AS older
            WHERE older.ordered IS NULL
            UNION ALL
            SELECT * FROM (
                SELECT
                    task.ctid AS place, task.id, task.limit_place, task.queue_name, task.lane, task.task_path,
                    task.expires_at, task.crashes, task.ordered
                FROM aiotasks_task AS task
                WHERE task.backend = $3::text AND task.limit_key = held.key AND task.status = 'READY'
                  AND task.ordered IS NOT NULL AND open.ordered AND open.begun IS NULL
                  AND (task.expires_at IS NULL OR task.expires_at > statement_timestamp())
                ORDER BY task.priority DESC, task.limit_place, task.id
                LIMIT 1
            ) AS first
            LIMIT 1
        ) AS next
        LEFT JOIN LATERAL (
            SELECT task.ctid AS place
            FROM aiotasks_task AS task
            WHERE task.ctid = next.place AND task.status || '' = 'READY'
              AND next.queue_name = open.queue_name AND next.lane = $4::text
              AND next.limit_place IS NOT NULL
              AND next.task_path <> ALL(open.paused)
              AND (next.expires_at IS NULL OR next.expires_at > statement_timestamp())
              AND CASE WHEN open.id IS NOT NULL THEN next.id = open.id ELSE next.crashes < 2 END
            FOR UPDATE SKIP LOCKED
        ) AS mine ON true
        LIMIT open.room
    ) AS first ON true
    WHERE open.room > 0
    LIMIT $5::integer
), spent AS (
    -- Always a new version, which makes the snapshots of all others too old.
    UPDATE aiotasks_limit AS own
    SET claimed_at = gave.moment,
        -- Without a pace it stays: a claim of code that knows no rate must not let those start more that know one.
        level = CASE WHEN gave.pace IS NULL THEN own.level ELSE gave.level + gave.number END,
        paid_at = CASE
            WHEN gave.pace IS NULL THEN greatest(own.paid_at, gave.moment)
            ELSE gave.moment + make_interval(secs => least((gave.level + gave.number) * gave.pace, 3e9))
        END,
        -- Whether or not this claim counts them: one of another release may say that the key is in strict order.
        busy_since = CASE WHEN gave.is_counted THEN least(gave.first, (
            SELECT held.limit_place
            FROM aiotasks_task AS held
            WHERE held.backend = $3::text AND held.limit_held = own.key
              AND held.limit_place >= coalesce(own.busy_since, '-infinity')
              AND CASE held.status
                  WHEN 'RUNNING' THEN true
                  WHEN 'FAILED' THEN held.ordered = 'stop' AND held.cancel_requested_at IS NULL
                  WHEN 'SUCCESSFUL' THEN false
                  ELSE held.ordered IS NOT NULL
              END
            ORDER BY held.limit_place
            LIMIT 1
        )) END
    FROM (
        SELECT
            head.place, head.moment, head.is_counted, head.pace, head.level,
            count(*) AS number, min(head.limit_place) AS first
        FROM head
        WHERE head.task IS NOT NULL AND head.place IS NOT NULL
        GROUP BY head.place, head.moment, head.is_counted, head.pace, head.level
    ) AS gave
    WHERE own.ctid = gave.place
), claimed AS (
    UPDATE aiotasks_task AS task
    SET status = 'RUNNING',
        claim_id = $2::uuid,
        worker_id = $1::uuid,
        limit_held = task.limit_key,
        worker_ids = CASE WHEN array_ndims(task.worker_ids) > 1 THEN '{}' ELSE task.worker_ids END || $1::uuid,
        started_at = coalesce(task.started_at, statement_timestamp()),
        -- As of claimed_at, by which the rate goes.
        last_attempted_at = (SELECT claimer.moment FROM claimer)
    WHERE task.ctid = ANY(ARRAY(SELECT head.task FROM head WHERE head.task IS NOT NULL))
    RETURNING
        {keyed_columns}
), report AS MATERIALIZED (
    SELECT
        json_agg(json_build_array(
            seen.n, seen.is_paused, seen.is_unknown, seen.place IS NULL AND NOT seen.is_free, seen.closed_for,
            seen.places, seen.starts, seen.room, seen.pace, (seen.level - seen.burst + 1) * seen.pace,
            seen.weight
        ))::text AS keys,
        (
            SELECT json_agg(json_build_array(gave.n, gave.number, gave.queue_name, gave.lane))::text
            FROM (
                SELECT
                    head.n, count(head.task) AS number,
                    min(head.queue_name) FILTER (WHERE head.task IS NULL) AS queue_name,
                    min(head.lane) FILTER (WHERE head.task IS NULL) AS lane
                FROM head
                GROUP BY head.n
            ) AS gave
        ) AS gave
    FROM seen
)
SELECT
    CASE WHEN coalesce(numbered.place, 1) = 1 THEN report.keys END,
    CASE WHEN coalesce(numbered.place, 1) = 1 THEN report.gave END,
    numbered.*
FROM report
LEFT JOIN (SELECT row_number() OVER () AS place, claimed.* FROM claimed) AS numbered ON true
