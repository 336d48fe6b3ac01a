"""``manage.py check``: every mistake in the settings has its message, and nothing is connected to."""

from io import StringIO
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connection, connections

BACKEND = "aiotasks.backend.PostgresBackend"


def found(settings: Any, **params: Any) -> list[tuple[str, str]]:
    settings.TASKS = {"default": {"BACKEND": BACKEND, **params}}
    messages = [(message.id or "", str(message.msg)) for message in run_checks()]
    return [(id, text) for id, text in messages if id.startswith("aiotasks")]


@pytest.mark.parametrize(
    ("params", "id", "named"),
    [
        ({"OPTIONS": {"POOL_SIZE": 3}}, "aiotasks.E002", "'POOL_SIZE'"),
        ({"OPTIONS": {"LEASE_TIMEOUT": "30"}}, "aiotasks.E002", "'LEASE_TIMEOUT'"),
        ({"OPTIONS": {"NOTIFY": 1}}, "aiotasks.E002", "'NOTIFY'"),
        ({"OPTIONS": {"POOL_MIN_SIZE": [1]}}, "aiotasks.E002", "'POOL_MIN_SIZE'"),
        ({"OPTIONS": {"POOL_MIN_SIZE": 9, "POOL_MAX_SIZE": 3}}, "aiotasks.E002", "POOL_MIN_SIZE (9)"),
        ({"OPTIONS": []}, "aiotasks.E002", "OPTIONS"),
        ({"MAX_ATTEMPTS": 0}, "aiotasks.E002", "['MAX_ATTEMPTS'] must be a whole number"),
        ({"MAX_ATTEMPTS": 3, "OPTIONS": {"MAX_ATTEMPTS": 4}}, "aiotasks.E002", "give it once"),
        ({"OPTIONS": {"BACKOFF": "nowhere.backoff"}}, "aiotasks.E011", "'nowhere.backoff'"),
        ({"BACKOFF": "aiotasks.backoff.Exponential"}, "aiotasks.E011", "must be a function"),
        ({"OPTIONS": {"DATABASE": "nowhere"}}, "aiotasks.E003", "'nowhere'"),
        ({"QUEUES": "default"}, "aiotasks.E005", "'default'"),
        ({"QUEUES": [5]}, "aiotasks.E005", "[5]"),
        ({"QUEUES": [""]}, "aiotasks.E005", "['']"),
        ({"QUEUES": [10**5000]}, "aiotasks.E005", "a list"),
    ],
)
def test_a_mistake_is_told_by_name(
    settings: Any, opened: list[str], params: Any, id: str, named: str
) -> None:
    ((found_id, message),) = found(settings, **params)
    assert found_id == id
    assert named in message
    assert "default" in message
    assert opened == []


@pytest.mark.parametrize(
    "value",
    [
        "postgres://site:s3cr3t@db/site",
        "postgres://:s3cr3t@x@db/site",
        "host=db password=s3cr3t dbname=site",
        "host=db password='s3cr3t 4' dbname=site",
        {"HOST": "db", "PASSWORD": "s3cr3t"},
        {"HOST": "db", "PASSWORD": "it's s3cr3t, isn't it"},
        {"HOST": "x" * 600, "PASSWORD": "s3cr3t"},
        [{"PASSWORD": b"s3cr3t"}],
    ],
)
@pytest.mark.parametrize("option", ["DATABASE", "LISTEN_DATABASE", "OPTIONS"])
def test_a_password_in_the_wrong_place_is_not_told(settings: Any, option: str, value: Any) -> None:
    if option == "OPTIONS" and isinstance(value, dict):
        value = [value]
    params = {"OPTIONS": value if option == "OPTIONS" else {option: value}}
    ((id, message),) = found(settings, **params)
    assert id in ("aiotasks.E002", "aiotasks.E003")
    assert option in message
    assert "s3cr3t" not in message


@pytest.mark.parametrize("options", [[1], {"connect_timeout": []}, {"connect_timeout": "soon"}], ids=str)
def test_connection_options_of_a_wrong_type(
    settings: Any, monkeypatch: pytest.MonkeyPatch, options: Any
) -> None:
    monkeypatch.setitem(connection.settings_dict, "OPTIONS", options)
    ((id, message),) = found(settings)
    assert id == "aiotasks.E006"
    assert "DATABASES['default']" in message


def test_good_settings_are_told_nothing(settings: Any, opened: list[str]) -> None:
    good: list[dict[str, Any]] = [
        {},
        {"QUEUES": []},
        {"QUEUES": ("a", "b"), "OPTIONS": {"NOTIFY": False, "MAX_CRASHES": 0}},
    ]
    for params in good:
        assert found(settings, **params) == []
    assert opened == []


def test_what_was_read_before_changes_nothing(settings: Any) -> None:
    """Options are cached; True and 1 are equal, but only one of them is a boolean."""
    assert found(settings, OPTIONS={"NOTIFY": True, "MAX_CRASHES": 1}) == []
    assert [id for id, _ in found(settings, OPTIONS={"NOTIFY": 1, "MAX_CRASHES": 1})] == ["aiotasks.E002"]
    assert [id for id, _ in found(settings, OPTIONS={"NOTIFY": True, "MAX_CRASHES": True})] == [
        "aiotasks.E002"
    ]


def test_a_missing_app(settings: Any) -> None:
    settings.INSTALLED_APPS = []
    ((id, message),) = found(settings)
    assert id == "aiotasks.E001"
    assert "INSTALLED_APPS" in message


def test_a_database_that_is_not_postgresql(settings: Any) -> None:
    connections.databases["lite"] = {
        **connections.databases["default"],
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": ":memory:",
        "OPTIONS": {},
    }
    try:
        ((id, message),) = found(settings, OPTIONS={"DATABASE": "lite"})
    finally:
        del connections["lite"]
        del connections.databases["lite"]
    assert id == "aiotasks.E004"
    assert "SQLite" in message


@pytest.mark.django_db
def test_tables_that_are_not_migrated_yet_are_a_warning(settings: Any) -> None:
    """Where the database is asked at all: in ``migrate``, and in ``check --database``."""
    assert run_checks(databases=["default"], tags=["database"]) == []
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE aiotasks_task RENAME TO aside")
    (message,) = [m for m in run_checks(databases=["default"]) if str(m.id).startswith("aiotasks")]
    assert message.id == "aiotasks.W002"
    assert not message.is_serious()
    assert "migrate" in str(message.hint)


def test_manage_py_check_fails_with_it(settings: Any) -> None:
    settings.TASKS = {"default": {"BACKEND": BACKEND, "OPTIONS": {"POOL_SIZE": 3}}}
    with pytest.raises(SystemCheckError, match="POOL_SIZE"):
        call_command("check", stdout=StringIO(), stderr=StringIO())
