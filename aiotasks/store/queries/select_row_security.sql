-- The kinds of statement that row-level security restricts for this role: whether its policies allow them for some
-- rows, and which policies are for this role. (An owner is restricted if the table has FORCE; a superuser and a
-- role with BYPASSRLS never are.)
SELECT tables.relname::text, kind.name, coalesce(found.for_some, false), coalesce(found.names, '{}')
FROM pg_class AS tables
CROSS JOIN (VALUES ('SELECT', 'r'), ('INSERT', 'a'), ('UPDATE', 'w'), ('DELETE', 'd')) AS kind (name, letter)
CROSS JOIN LATERAL (
    SELECT
        bool_or(policy.polpermissive) AS for_some,
        bool_or(policy.polpermissive AND policy.is_plain)
            AND bool_and(policy.polpermissive OR policy.is_plain) AS for_all,
        array_agg(quote_ident(policy.polname) ORDER BY policy.polname) AS names
    FROM (
        SELECT
            each.polpermissive, each.polname,
            coalesce(pg_get_expr(each.polqual, each.polrelid), 'true') = 'true'
                AND coalesce(pg_get_expr(each.polwithcheck, each.polrelid), 'true') = 'true' AS is_plain
        FROM pg_policy AS each
        WHERE each.polrelid = tables.oid AND each.polcmd::text IN ('*', kind.letter)
          AND EXISTS (
              SELECT FROM unnest(each.polroles) AS role (id)
              WHERE role.id = 0 OR pg_has_role(role.id, 'USAGE')
          )
    ) AS policy
) AS found
WHERE tables.oid IN (
      to_regclass('aiotasks_task'), to_regclass('aiotasks_worker'), to_regclass('aiotasks_pause'),
      to_regclass('aiotasks_schedule'), to_regclass('aiotasks_limit'), to_regclass('aiotasks_sample')
  )
  AND row_security_active(tables.oid) AND NOT coalesce(found.for_all, false)
ORDER BY tables.relname, kind.name
