-- Wake two workers for each queue and lane: of those that serve the queue, have slots in the lane, LISTEN and
-- have a live lease, two at random, each on its own channel. The first claims at once, the second a few
-- milliseconds later, should the first be unable to. Where there is none, and where workers of the release
-- before have no channel of their own, the common channel is notified, too: all workers LISTEN on it.
-- A worker's LISTEN session holds a shared lock on the name of its channel (see db/listener.py): if the exclusive
-- one can be had here, the session has ended, and the worker with it, most probably. If not even the shared one can
-- be had, another wake-up has found that just now.
-- (OFFSET 0: a subquery that is merged with its surroundings would choose again for each use.)
-- synchronous_commit and a transaction of its own: as in notify.sql.
-- $1 the common channel; per wake-up: $2 backends, $3 queue names, $4 lanes, $5 how many workers have passed it
-- on, $6 the channels of the workers that pass it on, who aren't to be woken (NULL: it comes from an enqueue),
-- $7 payloads for the common channel
SELECT
    pg_notify(
        target.channel,
        CASE WHEN target.channel = $1::text THEN news.payload
        ELSE json_build_array(news.backend, news.queue_name, news.lane, news.passed, target.place)::text END
    ),
    set_config('synchronous_commit', 'off', true)
FROM unnest($2::text[], $3::text[], $4::text[], $5::integer[], $6::text[], $7::text[])
    AS news (backend, queue_name, lane, passed, sender, payload)
CROSS JOIN LATERAL (
    SELECT
        ARRAY(
            SELECT candidate.channel
            FROM (
                SELECT worker.channel
                FROM aiotasks_worker AS worker
                WHERE worker.listening AND worker.lease_expires_at > statement_timestamp()
                  AND worker.backend = news.backend
                  AND (worker.queues = '{}' OR news.queue_name = ANY(worker.queues))
                  AND CASE WHEN news.lane IN ('loop', 'loop+') THEN worker.concurrency ELSE worker.threads END > 0
                  AND worker.channel <> coalesce(news.sender, '')
                GROUP BY worker.channel
                ORDER BY random()
            ) AS candidate
            CROSS JOIN LATERAL hashtextextended(candidate.channel, 0) AS lock (key)
            WHERE CASE WHEN pg_try_advisory_xact_lock(lock.key) THEN false
                ELSE pg_try_advisory_xact_lock_shared(lock.key) END
            LIMIT 2
        ) AS channels,
        EXISTS (
            SELECT FROM aiotasks_worker AS worker
            WHERE worker.listening AND worker.lease_expires_at > statement_timestamp()
              AND worker.backend = news.backend AND worker.channel IS NULL
              AND (worker.queues = '{}' OR news.queue_name = ANY(worker.queues))
        ) AS has_old
    OFFSET 0
) AS chosen
CROSS JOIN LATERAL unnest(
    CASE WHEN news.sender IS NULL AND (chosen.has_old OR chosen.channels = '{}')
    THEN chosen.channels || $1::text ELSE chosen.channels END
) WITH ORDINALITY AS target (channel, place)
