-- The scheduled tasks that are due, in the order in which promote_due_jobs takes them.
-- $1 backend, $2 how many at the most, $3 ids to leave out
SELECT due.id
FROM aiotasks_task AS due
WHERE due.status = 'SCHEDULED' AND due.backend = $1::text AND due.run_after <= statement_timestamp()
  AND due.id <> ALL($3::uuid[])
ORDER BY due.run_after
LIMIT $2::integer
