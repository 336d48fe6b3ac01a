-- The names of the tasks' indexes that serve; not those that an interrupted CREATE or REINDEX CONCURRENTLY has left.
SELECT index.relname::text
FROM pg_index AS serving
JOIN pg_class AS index ON index.oid = serving.indexrelid
WHERE serving.indrelid = to_regclass('aiotasks_task') AND serving.indisvalid
