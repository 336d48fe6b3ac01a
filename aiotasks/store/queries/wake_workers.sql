-- Wake two workers for each queue and lane: of those that serve the queue, have slots in the lane, LISTEN and
-- have a live lease, two at random, each on its own channel. The first claims at once, the second a few
-- milliseconds later, should the first be unable to. Where there is none, and where workers of the release
-- before have no channel of their own, the common channel is notified, too: all workers LISTEN on it.
-- A worker's LISTEN session holds a lock on the name of its channel (see db/listener.py): if the lock can be had
-- here, the session has ended, and the worker with it, most probably.
-- synchronous_commit and a transaction of its own: as in notify.sql.
-- $1 the common channel; per wake-up: $2 backends, $3 queue names, $4 lanes, $5 how many workers have passed it
-- on, $6 the channels of the workers that pass it on, who aren't to be woken (NULL: it comes from an enqueue),
-- $7 payloads for the common channel
WITH news AS MATERIALIZED (
    SELECT news.*
    FROM unnest($2::text[], $3::text[], $4::text[], $5::integer[], $6::text[], $7::text[])
        WITH ORDINALITY AS news (backend, queue_name, lane, passed, sender, payload, number)
), listening AS MATERIALIZED (
    SELECT worker.backend, worker.queues, worker.channel, worker.concurrency > 0 AS loop, worker.threads > 0 AS thread
    FROM aiotasks_worker AS worker
    WHERE worker.listening AND worker.lease_expires_at > statement_timestamp()
), woken AS MATERIALIZED (
    SELECT news.number, worker.channel, worker.place
    FROM news
    CROSS JOIN LATERAL (
        SELECT candidate.channel, row_number() OVER () AS place
        FROM (
            SELECT listening.channel
            FROM listening
            WHERE listening.backend = news.backend
              AND (listening.queues = '{}' OR news.queue_name = ANY(listening.queues))
              AND CASE news.lane WHEN 'loop' THEN listening.loop ELSE listening.thread END
              AND listening.channel <> coalesce(news.sender, '')
            ORDER BY random()
        ) AS candidate
        WHERE NOT pg_try_advisory_xact_lock(hashtextextended(candidate.channel, 0))
        LIMIT 2
    ) AS worker
)
SELECT pg_notify(target.channel, target.payload), set_config('synchronous_commit', 'off', true)
FROM (
    SELECT
        woken.channel,
        json_build_array(news.backend, news.queue_name, news.lane, news.passed, woken.place)::text AS payload
    FROM woken
    JOIN news ON news.number = woken.number
    UNION ALL
    SELECT $1::text, news.payload
    FROM news
    WHERE (news.sender IS NULL AND NOT EXISTS (SELECT FROM woken WHERE woken.number = news.number))
       OR EXISTS (
           SELECT FROM listening
           WHERE listening.channel IS NULL AND listening.backend = news.backend
             AND (listening.queues = '{}' OR news.queue_name = ANY(listening.queues))
       )
) AS target
