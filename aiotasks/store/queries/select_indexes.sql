-- The names of the valid indexes of the tasks' table: an interrupted CREATE or REINDEX CONCURRENTLY leaves an invalid
-- one.
SELECT index.relname::text
FROM pg_index AS serving
JOIN pg_class AS index ON index.oid = serving.indexrelid
WHERE serving.indrelid = to_regclass('aiotasks_task') AND serving.indisvalid
