-- The storage parameters of aiotasks' tables, as name=value.
SELECT tables.relname::text, coalesce(tables.reloptions::text[], '{}')
FROM pg_class AS tables
WHERE tables.oid IN (
    to_regclass('aiotasks_task'), to_regclass('aiotasks_worker'),
    to_regclass('aiotasks_limit'), to_regclass('aiotasks_schedule')
)
