-- The names of aiotasks' migrations that Django has recorded as applied.
SELECT migration.name::text FROM django_migrations AS migration WHERE migration.app = 'aiotasks'
