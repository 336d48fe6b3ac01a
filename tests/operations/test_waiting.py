"""``check`` on tasks that nobody comes for, and on settings by which that comes about."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import connection, connections

from aiotasks.checks import check_backend
from tests.site import postgres_connection

from .conftest import check, run, status
from .test_check import only, params

type Enter = Callable[..., Any]
BACKEND = "aiotasks.backend.PostgresBackend"


def test_a_lane_and_a_queue_without_a_worker(fill: Callable[..., None], enter: Enter) -> None:
    enter(queues=["served"], threads=0)
    fill("READY", 3, "served")
    assert check()[1]["waiting"]["verdict"] == "ok"
    fill("READY", 3, "served", lane="thread")
    finding = only("waiting")
    assert finding["verdict"] == "warning"
    assert finding["message"].endswith(": backend 'default', queue 'served', sync tasks.")
    fill("READY", 1, "other")
    assert "queue 'other', coroutine tasks" in only("waiting")["message"]
    for n in range(10):
        fill("READY", 1, f"q{n}")
    assert only("waiting")["message"].endswith("; and 7 more.")
    enter(queues=[], lease=-5.0)  # a dead one serves nobody
    assert only("waiting")["verdict"] == "warning"
    enter(queues=[])
    assert check()[1]["waiting"]["verdict"] == "ok"


def test_a_worker_that_stops_serves_nothing(
    sql: psycopg.Connection, fill: Callable[..., None], enter: Enter
) -> None:
    """It renews its lease, and doesn't say whether NOTIFY wakes it. Nor do new and very old ones."""
    fill("READY", 1)

    def serves(**values: Any) -> bool:
        sql.execute("DELETE FROM aiotasks_worker")
        enter(listening=None, **values)
        number = status()["queues"][0]["workers"]
        assert (check()[1]["waiting"]["verdict"] == "ok") is (number == 1)
        assert ("  stopping  " in run("status")[1]) is (number == 0)
        return bool(number)

    assert serves()
    assert not serves(age=61.0)
    assert serves(age=61.0, claims_keyed=None)


def test_backends_without_a_worker(
    fill: Callable[..., None], enter: Enter, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of TASKS in the same database, one that TASKS hasn't any more, and one in another database."""
    monkeypatch.setitem(connections.settings, "second", dict(connections.settings["default"]))
    settings.TASKS = {
        "default": {"BACKEND": BACKEND},
        "mails": {"BACKEND": BACKEND, "QUEUES": []},
        "apart": {"BACKEND": BACKEND, "OPTIONS": {"DATABASE": "second"}},
        "dummy": {"BACKEND": "django.tasks.backends.dummy.DummyBackend"},
    }
    enter()
    fill("READY", 1, backend="mails")
    fill("READY", 1, backend="renamed")
    fill("READY", 1, backend="apart")
    finding = only("waiting")
    assert finding["verdict"] == "warning"
    for backend in ("mails", "renamed", "apart"):
        assert f"backend '{backend}', queue 'default'" in finding["message"]
    assert "worker --backend mails" in finding["remedy"]
    assert "TASKS has no backend 'renamed'" in finding["remedy"]
    for backend in ("mails", "renamed", "apart"):
        enter(backend=backend)
    assert check()[1]["waiting"]["verdict"] == "ok"
    connections["second"].close()


@pytest.mark.parametrize(
    ("pool", "told"), [(True, "4"), ({"min_size": 1, "max_size": 12}, "12"), ({"max_size": 30}, None)]
)
def test_a_pool_smaller_than_the_threads(enter: Enter, pool: Any, told: str | None) -> None:
    enter(threads=10)
    connection.close()
    with params(OPTIONS={"pool": pool}):
        try:
            code, found = check()
        finally:
            connection.close()
            postgres_connection().close_pool()
    assert code == 0
    assert found["connections"]["verdict"] == ("warning" if told else "ok")
    if told:
        assert (
            f"has {told} connections a process, and a worker's threads may want 18"
            in found["connections"]["message"]
        )


def ids(**options: Any) -> list[str]:
    return [str(message.id) for message in check_backend("default", {"OPTIONS": options})]


def test_settings_by_which_no_worker_finds_the_tasks(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ids() == []
    settings.TENANT_APPS = ["shop", "aiotasks.apps.AiotasksConfig"]
    assert ids() == ["aiotasks.E010"]
    del settings.TENANT_APPS

    class Router:
        def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
            return db == "second" if app_label == "aiotasks" else None

    settings.DATABASE_ROUTERS = [Router()]
    monkeypatch.setitem(connections.settings, "second", dict(connections.settings["default"]))
    assert ids() == ["aiotasks.W003"]
    assert ids(DATABASE="second") == []
    settings.DATABASE_ROUTERS = []
    monkeypatch.setitem(connections["default"].settings_dict, "CONN_MAX_AGE", 600)
    assert ids() == []
    settings.ASGI_APPLICATION = "site.asgi.application"
    assert ids() == ["aiotasks.W004"]


SETTINGS = """
from tests.settings import *
INSTALLED_APPS = {apps}
DATABASES["pg"] = DATABASES["default"]
DATABASES["default"] = {{"ENGINE": "django.db.backends.sqlite3", "NAME": {file!r}}}
TASKS = {{"default": {{"BACKEND": "aiotasks.backend.PostgresBackend", "OPTIONS": {{"DATABASE": "pg"}}}}}}
ROOT_URLCONF = "site_urls"
"""


def manage(
    folder: Path, env: dict[str, str], apps: list[str], *arguments: str, module: str = "django"
) -> subprocess.CompletedProcess[str]:
    (folder / "site_settings.py").write_text(
        SETTINGS.format(apps=apps, file=os.fspath(folder / "db.sqlite3"))
    )
    (folder / "site_urls.py").write_text(
        "from django.tasks import task\n@task\ndef one(): pass\nurlpatterns = []\n"
    )
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env={
            **env,
            "DJANGO_SETTINGS_MODULE": "site_settings",
            "PYTHONPATH": f"{folder}{os.pathsep}{env['PYTHONPATH']}",
        },
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_site_on_sqlite_with_its_tasks_in_postgresql(worker_env: dict[str, str], tmp_path: Path) -> None:
    """A syntax error of SQLite before: the tables are PostgreSQL's."""
    for arguments in (
        ("migrate",),
        ("check",),
        ("makemigrations", "--check"),
        ("migrate", "aiotasks", "zero"),
    ):
        done = manage(tmp_path, worker_env, ["aiotasks"], *arguments)
        assert done.returncode == 0, done.stderr


def test_an_app_that_is_not_installed(worker_env: dict[str, str], tmp_path: Path) -> None:
    done = manage(tmp_path, worker_env, [], "check")
    assert done.returncode == 1
    assert "INSTALLED_APPS doesn't have it" in done.stderr
    # Where nothing imports Django's tasks, `check` asks no backend: the worker says it all the same.
    done = manage(tmp_path, worker_env, [], module="aiotasks.worker")
    assert done.returncode == 1
    assert 'INSTALLED_APPS doesn\'t have it. Add "aiotasks" to INSTALLED_APPS and run' in done.stderr


def test_a_search_path_for_other_tables_is_fine(enter: Enter, sql: psycopg.Connection) -> None:
    """django-tenants' sets one on each of Django's connections."""
    from .test_session import receiver

    enter()
    with receiver("SET search_path TO public"):
        code, found = check()
    assert (code, found["session"]["verdict"]) == (0, "ok")
