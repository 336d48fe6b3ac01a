-- This role, as an identifier; its privileges on aiotasks' tables, as `SELECT ON aiotasks_task`, among them that on
-- the columns that wake_workers reads (NULL: it finds no tables); and some schemas that have the tables, whether the
-- role finds them there or not.
SELECT
    quote_ident(current_user),
    CASE WHEN to_regclass('aiotasks_task') IS NOT NULL AND to_regclass('aiotasks_worker') IS NOT NULL THEN ARRAY(
        SELECT concat(wanted.kind, ' ON ', tables.name)
        FROM unnest(ARRAY['aiotasks_task', 'aiotasks_worker', 'aiotasks_pause']) AS tables (name)
        CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS wanted (kind)
        WHERE has_table_privilege(to_regclass(tables.name), wanted.kind)
        UNION ALL
        SELECT format('SELECT (%s) ON aiotasks_worker', array_to_string(waking.names, ', '))
        FROM (VALUES (
            ARRAY['backend', 'queues', 'concurrency', 'threads', 'listening', 'channel', 'lease_expires_at']
        )) AS waking (names)
        WHERE cardinality(waking.names) = (
            SELECT count(*) FROM pg_attribute AS attribute
            WHERE attribute.attrelid = to_regclass('aiotasks_worker') AND attribute.attname = ANY(waking.names)
              AND has_column_privilege(attribute.attrelid, attribute.attnum, 'SELECT')
        )
    ) END,
    ARRAY(
        SELECT quote_ident(namespace.nspname)
        FROM pg_class AS tables JOIN pg_namespace AS namespace ON namespace.oid = tables.relnamespace
        WHERE tables.relname = 'aiotasks_task' AND tables.relkind IN ('r', 'p')
        ORDER BY namespace.nspname LIMIT 3
    )
