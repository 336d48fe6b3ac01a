-- The tasks that hold keys, so that no other task with such a key is stored now.
-- $1 backend, $2 keys
SELECT held.unique_key, held.id
FROM unnest($2::text[]) AS each (key)
-- As in free_unique_keys.
CROSS JOIN LATERAL (
    SELECT task.unique_key, task.id
    FROM aiotasks_task AS task
    WHERE task.backend = $1::text AND task.unique_key = each.key AND NOT {key_is_free}
    OFFSET 0
) AS held
