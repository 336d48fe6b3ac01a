-- The names of aiotasks' migrations that have been applied, as Django has entered them.
SELECT migration.name::text FROM django_migrations AS migration WHERE migration.app = 'aiotasks'
