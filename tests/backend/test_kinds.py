"""Functions that aren't what they look like, and tasks that no worker could run."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import asyncpg
import pytest
from django.tasks import TaskResultStatus
from django.tasks.exceptions import InvalidTask

from aiotasks import TaskCancelled
from tests import tasks
from tests.conftest import ROOT
from tests.worker.harness import until

from .support import DEADLINE, Api, finished, run_all, worker


@pytest.fixture(autouse=True)
def _nothing_noted() -> None:
    tasks.noted.clear()


async def test_the_coroutine_of_a_sync_wrapper_is_awaited_on_the_loop(database: str) -> None:
    results = [await tasks.wrapped.aenqueue("run"), await tasks.returns_coroutine.aenqueue()]
    bad = await tasks.wrapped.aenqueue("fail")
    generator = await tasks.returns_generator.aenqueue()
    await run_all(threads=1, concurrency=1)
    for result in results:
        await result.arefresh()
        assert result.return_value == [threading.current_thread().name, 1]
    assert any(str(note).startswith("aiotasks") for note in tasks.noted)  # the wrapper's own thread
    await bad.arefresh()
    assert bad.errors[0].exception_class is ValueError
    await generator.arefresh()
    assert "the return value: Unsupported type: <class 'generator'>" in generator.errors[0].traceback


async def test_it_can_be_cancelled_there(database: str) -> None:
    async with worker(threads=1):
        result = await tasks.wrapped.aenqueue("wait")
        await until(lambda: "wait" in tasks.noted)
        assert await result.acancel()
        await finished(result)
    assert result.errors[0].exception_class is TaskCancelled


async def test_it_is_given_back_from_there(database: str, conn: asyncpg.Connection) -> None:
    async with worker(threads=1, grace=0.0):
        result = await tasks.wrapped.aenqueue("wait")
        await until(lambda: "wait" in tasks.noted)
    await result.arefresh()
    assert (result.status, result.attempts, result.errors) == (TaskResultStatus.READY, 0, [])


@pytest.mark.parametrize("task", [tasks.generator, tasks.async_generator], ids=["sync", "async"])
async def test_a_generator_function_is_refused(database: str, api: Api, task: object) -> None:
    with pytest.raises(InvalidTask, match="is a generator function: a call of it runs nothing"):
        await api.enqueue(task)


SCRIPT = """
import django
from django.conf import settings
settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", "HOST": "192.0.2.1", "NAME": "x"}},
    INSTALLED_APPS=["aiotasks"],
    TASKS={"default": {"BACKEND": "aiotasks.backend.PostgresBackend"}},
)
django.setup()
from django.tasks import task
from django.tasks.exceptions import InvalidTask
@task
def work(): pass
try:
    work.enqueue()
except InvalidTask as error:
    print(error)
"""


@pytest.mark.parametrize("command", ["script.py", "-m pkg.script"])
def test_a_task_of_the_script_itself_is_refused(tmp_path: Path, command: str) -> None:
    for folder in (tmp_path, tmp_path / "pkg"):
        folder.mkdir(exist_ok=True)
        (folder / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, *command.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.fspath(ROOT)},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert "No worker could run this task: '__main__.work'" in done.stdout, done.stderr
    assert "Move it into a module of the site" in done.stdout
    assert ("import it from 'pkg.script'" in done.stdout) == command.startswith("-m")
