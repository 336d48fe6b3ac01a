-- This role, as an identifier; its privileges on aiotasks' tables, as `SELECT ON aiotasks_task`, among them those on
-- columns that a site needs (NULL: it finds no tables); and some schemas that have the tables, whether the role finds
-- them there or not. `UPDATE (any) ON aiotasks_task` is that on any column.
SELECT
    quote_ident(current_user),
    CASE WHEN to_regclass('aiotasks_task') IS NOT NULL AND to_regclass('aiotasks_worker') IS NOT NULL THEN ARRAY(
        SELECT concat(wanted.kind, ' ON ', tables.name)
        FROM unnest(ARRAY[
            'aiotasks_task', 'aiotasks_worker', 'aiotasks_pause', 'aiotasks_schedule', 'aiotasks_limit',
            'aiotasks_sample'
        ]) AS tables (name)
        CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS wanted (kind)
        WHERE has_table_privilege(to_regclass(tables.name), wanted.kind)
        UNION ALL
        SELECT format('%s (%s) ON %s', columns.kind, array_to_string(columns.names, ', '), columns.table_name)
        FROM (VALUES
            ('SELECT', 'aiotasks_worker', ARRAY[
                'backend', 'queues', 'concurrency', 'threads', 'listening', 'channel', 'lease_expires_at'
            ]),
            ('UPDATE', 'aiotasks_task', ARRAY[
                'status', 'errors', 'errors_omitted', 'finished_at', 'cancel_requested_at'
            ]),
            ('UPDATE', 'aiotasks_task', ARRAY['unique_key', 'former_key']),
            ('UPDATE', 'aiotasks_task', ARRAY['awaited']),
            ('UPDATE', 'aiotasks_task', ARRAY['metadata'])
        ) AS columns (kind, table_name, names)
        WHERE cardinality(columns.names) = (
            SELECT count(*) FROM pg_attribute AS attribute
            WHERE attribute.attrelid = to_regclass(columns.table_name) AND attribute.attname = ANY(columns.names)
              AND has_column_privilege(attribute.attrelid, attribute.attnum, columns.kind)
        )
        UNION ALL
        SELECT 'UPDATE (any) ON aiotasks_task'
        WHERE has_any_column_privilege(to_regclass('aiotasks_task'), 'UPDATE')
    ) END,
    ARRAY(
        SELECT quote_ident(namespace.nspname)
        FROM pg_class AS tables JOIN pg_namespace AS namespace ON namespace.oid = tables.relnamespace
        WHERE tables.relname = 'aiotasks_task' AND tables.relkind IN ('r', 'p')
        ORDER BY namespace.nspname LIMIT 3
    )
