-- A worker's last statement: it holds nothing any more and says good-bye.
-- $1 worker id
DELETE FROM aiotasks_worker
WHERE id = $1::uuid
