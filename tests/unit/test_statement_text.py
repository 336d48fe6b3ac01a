"""What a statement's text shows of its session."""

from importlib import resources

import pytest
from django.db.models import Count, Max
from django.db.models.functions import Lower, Now
from psycopg import sql

from aiotasks.db.statement_text import changes_session, may_write
from aiotasks.models import Task
from aiotasks.store.statements import load

CHANGES = [
    "SET ROLE tenant",
    "set search_path to a, b",
    "  -- a comment\n SET x = 1",
    "/* SELECT */ SET x = 1",
    "-- SELECT\nSET x = 1",
    "SET SESSION AUTHORIZATION x",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "RESET ALL",
    "DISCARD ALL",
    "SELECT 1; SET ROLE x",
    "BEGIN; SET x = 1; COMMIT",
    "SELECT set_config('a.b', %s, false)",
    "SELECT set_config('a.b', %s, %s)",
    "SELECT pg_catalog.set_config('a.b', %s, FALSE)",
    "SELECT \"set_config\" ('a.b', 'c', false)",
    "SELECT set_config('a', 'x', true), set_config('b', 'y', false)",
    "SELECT set_config('a', 'x,true)', false)",
    "SELECT id, set_config('a', 'x', false) FROM t",
    "INSERT INTO t SELECT set_config('a', 'x', false)",
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_try_advisory_lock_shared(1, 2)",
    "SELECT setseed(0.5)",
    "CREATE TEMP TABLE t ()",
    "CREATE TEMPORARY SEQUENCE s",
    "create or replace local temporary view v as select 1",
    "CREATE TABLE pg_temp.t (a int)",
    "SELECT * INTO TEMP t FROM u",
    "LISTEN a",
    "UNLISTEN *",
    "PREPARE a AS SELECT 1",
    "EXECUTE a",
    "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    "LOAD 'library'",
    "DO $$ BEGIN END $$",
    "CALL p()",
    "SELECT set_tenant(1)",
    "SELECT 1, set_tenant(2)",
    "SELECT set_tenant(1) AS from_here",
    "SELECT set_tenant('from')",
    'SELECT "public"."set_tenant"(1)',
    "SELECT set_tenant(id) FROM t",
    "SELECT * FROM set_tenant(1)",
    "SELECT * FROM public.set_tenant(1)",
    "SELECT (SELECT set_tenant(1))",
    "VALUES (set_tenant(1))",
    "SOMETHING new",
    "COPY (SELECT set_config('x', 'y', false)) TO STDOUT",
    "COPY (SELECT set_tenant(1)) TO STDOUT",
]
HARMLESS = [
    "",
    " ; ",
    "SELECT 1",
    " ( SELECT 1 ) ",
    "SELECT 1;",
    "SELECT 'a;b'",
    "SET LOCAL ROLE tenant",
    "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SET CONSTRAINTS ALL IMMEDIATE",
    "SELECT set_config('a.b', %s, true)",
    "SELECT set_config('a.b', lower(%s), true)",
    "SELECT pg_advisory_xact_lock(1)",
    "SELECT pg_notify(%s, %s)",
    "SELECT pg_sleep(1)",
    "SELECT current_setting('x')",
    "SELECT now()",
    "SELECT EXISTS (SELECT 1)",
    "SELECT * FROM generate_series(1, 10)",
    "SELECT count(*) FROM t",
    "SELECT extract(year FROM at) FROM t",
    "SELECT id FROM t WHERE id IN (1, 2) AND (a OR b)",
    "WITH x AS (SELECT 1) SELECT * FROM x",
    "UPDATE t SET role = 1",
    "CREATE TABLE t ()",
    "CREATE INDEX ON t (a)",
    "SAVEPOINT a",
    "ROLLBACK TO SAVEPOINT a",
    "EXPLAIN SELECT 1",
    "COPY t FROM STDIN",
    "TRUNCATE t",
]


@pytest.mark.parametrize("statement", CHANGES)
def test_what_changes_a_session(statement: str) -> None:
    assert changes_session(statement)
    assert changes_session(statement.encode())
    assert changes_session(sql.SQL(statement))
    assert changes_session(f"SELECT '{'x' * 5000}'; {statement}")


@pytest.mark.parametrize("statement", HARMLESS)
def test_what_does_not(statement: str) -> None:
    assert not changes_session(statement)


def test_what_is_no_text_counts_as_a_change() -> None:
    assert changes_session(object())


def test_the_orm_and_this_package_change_nothing() -> None:
    """Else each task that enqueues another would lose its connection."""
    tasks = Task.objects.all()
    for query in (
        tasks.filter(queue_name__icontains="x", status__in=["a", "b"]).order_by("priority")[:5],
        tasks.annotate(n=Count("id"), low=Lower("queue_name")).filter(n__gt=1),
        tasks.values("status").annotate(last=Max("enqueued_at"), at=Now()),
        tasks.filter(id__in=tasks.values("id")),
    ):
        assert not changes_session(query.query.sql_with_params()[0])
    names = [
        file.name.removesuffix(".sql") for file in (resources.files("aiotasks.store") / "queries").iterdir()
    ]
    assert [name for name in names if changes_session(load(name).django_sql)] == []


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * INTO kept FROM t",
        "-- SELECT\n (SELECT 1 INTO kept)",
        "SELECT 1 /* a */ INTO/**/kept",
        "WITH x AS (INSERT INTO t VALUES (1) RETURNING id) SELECT * FROM x",
        "WITH x AS (SELECT 1) DELETE FROM t",
        "WITH x AS (SELECT 1) SELECT * INTO kept FROM x",
        "SELECT nextval('s')",
        "SELECT pg_catalog.\"setval\" ('s', 1)",
        "SELECT lo_create(0)",
        "SELECT pg_notify('a', 'b')",
        "CALL p()",
        "DO $$ BEGIN END $$",
        "COPY t FROM STDIN",
        "EXPLAIN ANALYZE INSERT INTO t VALUES (1)",
        "SELECT 1; TRUNCATE t",
        "/* SELECT */ UPDATE t SET a = 1",
    ],
)
def test_what_writes(statement: str) -> None:
    assert may_write(statement)
    assert may_write(statement.lower())


@pytest.mark.parametrize(
    "statement",
    [
        "",
        "SELECT 1;",
        "(SELECT 1)",
        "-- INSERT\nSELECT 1",
        "SELECT 'insert; into'",
        'SELECT "t"."update", "into" FROM "delete"',
        "SELECT * FROM t FOR NO KEY UPDATE",
        "WITH x AS (SELECT 1) SELECT * FROM x",
        "SELECT updated_at, lower(inserted) FROM t",
        "SAVEPOINT a",
        "ROLLBACK TO SAVEPOINT a",
        "EXPLAIN SELECT 1",
    ],
)
def test_what_only_reads(statement: str) -> None:
    assert not may_write(statement)
