"""What a worker says of its tasks when nothing is configured, and what changes that."""

import json
import re
from typing import Any

import pytest

import aiotasks
from aiotasks import registry
from tests.backend.support import run_all
from tests.site import default_task_backend
from tests.worker import tasks
from tests.worker.harness import Configure, Ledger, Start, until, wait_until
from tests.worker.test_logs import CONSOLE, FORMATTED, site

NOTHING = site({}, disable_existing_loggers=False)


def lines_of(log: str) -> list[str]:
    """The lines of tasks, without time and facts that differ."""
    found = re.findall(r"\S+ \S+ ([A-Z]+) aiotasks.tasks: tests.worker.(\w+.\w+) (succeeded|failed)", log)
    return [" ".join(one) for one in found]


def test_each_task_has_a_line_with_nothing_configured(start_worker: Start, ledger: Ledger) -> None:
    tasks.noop.enqueue()
    tasks.add_sync.enqueue(1, 2)
    tasks.fail.enqueue("ValueError")
    worker = start_worker("--until-empty", env=NOTHING)
    assert worker.wait() == 3
    assert sorted(lines_of(worker.log)) == [
        "ERROR tasks.fail failed",
        "INFO tasks.add_sync succeeded",
        "INFO tasks.noop succeeded",
    ]
    assert worker.log.count("Traceback (most recent call last)") == 1


def test_every_line_is_json(start_worker: Start, ledger: Ledger) -> None:
    ok, bad = tasks.noop.enqueue(), tasks.fail.enqueue("ExceptionGroup")
    worker = start_worker("--log-format", "json", "--until-empty", env=NOTHING)
    assert worker.wait() == 3
    records = [json.loads(line) for line in worker.log.splitlines()]
    by_id = {record["task_id"]: record for record in records if "task_id" in record}
    assert by_id.keys() == {ok.id, bad.id}
    assert (by_id[ok.id]["outcome"], by_id[ok.id]["level"]) == ("succeeded", "INFO")
    failed = by_id[bad.id]
    assert failed["exception"] == "builtins.ExceptionGroup"
    assert failed["frame"].startswith("tests/worker/tasks.py:")
    assert "Exception Group Traceback" in failed["traceback"]
    assert "\n" not in failed["message"]
    assert "details" not in failed
    assert records[-1]["message"].startswith("until empty: ")


def test_a_level_leaves_out_what_succeeds(start_worker: Start, ledger: Ledger) -> None:
    tasks.noop.enqueue()
    tasks.fail.enqueue("ValueError")
    worker = start_worker("--log-level", "error", "--until-empty", env=NOTHING, ready=False)
    assert worker.wait() == 3
    assert lines_of(worker.log) == ["ERROR tasks.fail failed"]
    assert "INFO" not in worker.log


def test_the_sites_logging_wins(start_worker: Start, ledger: Ledger) -> None:
    tasks.noop.enqueue()
    env = site(CONSOLE, root={"handlers": ["c"], "level": "INFO"}, **FORMATTED)
    worker = start_worker("--log-format", "json", "--processes", "2", "--until-empty", env=env, ready=False)
    assert worker.wait() == 0
    assert "SITE INFO aiotasks.tasks: tests.worker.tasks.noop succeeded" in worker.log
    remarks = re.findall("SITE WARNING aiotasks: Options for the log do nothing, .*", worker.log)
    assert len(remarks) == 1, "once, and not by each process"
    assert remarks[0].endswith(" options=--log-format json")
    assert "{" not in worker.log


def test_a_crowd_is_counted(start_worker: Start, ledger: Ledger) -> None:
    default_task_backend.enqueue_many(tasks.noop, [((), {})] * 2000)
    worker = start_worker("--until-empty", env=NOTHING)
    assert worker.wait() == 0
    assert 0 < len(lines_of(worker.log)) <= 50
    counts = re.findall(r"INFO aiotasks.tasks: (\d+) tasks finished in ", worker.log)
    assert sum(map(int, counts)) == 2000
    stopped, last = worker.log.index(": stopped"), worker.log.rindex(" tasks finished in ")
    assert last < stopped


async def test_an_embedded_worker_says_the_same(
    configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    result = await tasks.noop.aenqueue()
    await run_all()
    said = [record.getMessage() for record in caplog.records if record.name.startswith("aiotasks")]
    assert sum(" serves backend 'default'" in line for line in said) == 1
    assert sum(f"tests.worker.tasks.noop succeeded id={result.id}" in line for line in said) == 1
    assert "stopped" in said


async def test_a_slow_task_is_a_warning_while_it_runs_and_at_its_end(
    configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    configure(SLOW_TASK=0.05)
    tasks.released.clear()
    slow = await tasks.wait_in_thread.aenqueue()

    def warnings() -> list[Any]:
        return [record for record in caplog.records if getattr(record, "task_id", None) == slow.id]

    async with aiotasks.Worker(grace=5) as worker:
        await until(warnings)
        (running,) = warnings()
        assert "tests.worker.tasks.wait_in_thread is slow and still runs id=" in running.getMessage()
        assert running.getMessage().endswith(" slow_task=0.05")
        tasks.released.set()
        await worker.wait_until_empty()
        await until(lambda: len(warnings()) == 2)
    assert {record.levelname for record in warnings()} == {"WARNING"}
    assert " succeeded id=" in warnings()[1].getMessage()


def test_a_lost_task_has_a_line(start_worker: Start, ledger: Ledger) -> None:
    expired = tasks.noop.using(expires=0.001).enqueue()
    worker = start_worker(env=NOTHING, options={"POLL_INTERVAL": 0.2})
    wait_until(lambda: ledger.task(expired.id).status == "FAILED")
    worker.wait_for(f"tests.worker.tasks.noop failed id={expired.id} queue=default attempt=0 wait=- took=-")
    assert worker.stop() == 0
    assert re.search('error="aiotasks.exceptions.TaskExpired: .*" at=-\n', worker.log)


@pytest.mark.parametrize("path", [tasks.noop.module_path, "tests.worker.gone.task"])
async def test_a_lost_task_is_one_error(
    configure: Configure,
    ledger: Ledger,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
) -> None:
    """Django's where the task can be imported, be it for that alone; else the worker's own."""
    configure(POLL_INTERVAL=0.2)
    expired = await tasks.noop.using(expires=0.001).aenqueue()
    ledger.connection.execute("UPDATE aiotasks_task SET task_path = %s WHERE id = %s", [path, expired.id])
    monkeypatch.delitem(registry._resolved, tasks.noop.module_path, raising=False)

    def said() -> list[tuple[str, str]]:
        return [(one.name, one.levelname) for one in caplog.records if expired.id in one.getMessage()]

    async with aiotasks.Worker(grace=5):
        await until(lambda: "aiotasks.tasks" in dict(said()))
    if path == tasks.noop.module_path:
        assert sorted(said()) == [("aiotasks.tasks", "WARNING"), ("django.tasks", "ERROR")]
    else:
        assert said() == [("aiotasks.tasks", "ERROR")]
