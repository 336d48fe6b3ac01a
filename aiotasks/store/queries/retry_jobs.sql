-- Have FAILED tasks run again, as if they had just been enqueued, but for their history: errors, worker_ids and
-- started_at stay. Those alone that no other transaction has locked, and that are still meant. A task whose time hasn't
-- come is SCHEDULED for it.
-- A task doesn't expire any more, because its expires_at is over, or soon will be.
-- A task whose unique key another task has taken stays as it is: see retry_unique_job.
-- Returns id, queue name, lane, and when it is due in epoch seconds (NULL: it is READY).
-- $1 ids, $2 to $7 which are meant (see columns.py): $3 is FAILED alone
WITH held AS MATERIALIZED (
    SELECT found.ctid AS place, nullif(coalesce(found.asked_run_after, found.run_after), 'epoch') AS run_after
    FROM unnest($1::uuid[]) AS wanted (id)
    CROSS JOIN LATERAL (
        SELECT task.ctid, task.asked_run_after, task.run_after
        FROM aiotasks_task AS task
        WHERE task.id = wanted.id AND {is_meant}
          AND (task.unique_key IS NOT NULL OR task.former_key IS NULL)
        FOR UPDATE SKIP LOCKED
    ) AS found
)
UPDATE aiotasks_task AS task
SET {values_of_a_retry}
FROM held
WHERE task.ctid = held.place
RETURNING task.id, task.queue_name, task.lane,
    CASE WHEN task.status = 'SCHEDULED' THEN date_part('epoch', task.run_after) END
