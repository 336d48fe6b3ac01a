"""What a site's logging can do to a worker (nothing), and what a worker says in spite of LOGGING."""

import asyncio
import json
import logging
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import django
import pytest
from django.tasks.signals import task_finished

import aiotasks
from tests.worker import tasks
from tests.worker.harness import TIMEOUT, Configure, Ledger, Start, until, wait_until

HANDLERS = "tests.worker.handlers"

# The form that ADMINS has in this Django.
ADMINS = "pairs" if django.VERSION < (6, 0) else "addresses"


def site(handlers: dict[str, Any], *, root: dict[str, Any] | None = None, **more: Any) -> dict[str, str]:
    """The environment of a worker of a site with this LOGGING."""
    config = {"version": 1, "handlers": handlers, **({"root": root} if root else {}), **more}
    return {"DJANGO_SETTINGS_MODULE": "tests.worker.settings_logs", "TEST_LOGGING": json.dumps(config)}


RAISES = {
    "handler": site({"h": {"class": f"{HANDLERS}.Raising"}}, root={"handlers": ["h"], "level": "DEBUG"}),
    "filter": site(
        {"h": {"class": "logging.StreamHandler", "filters": ["f"]}},
        root={"handlers": ["h"], "level": "DEBUG"},
        filters={"f": {"()": f"{HANDLERS}.RaisingFilter"}},
    ),
    "formatter": site(
        {
            "h": {"class": "logging.handlers.BufferingHandler", "capacity": 1},
            "s": {"class": "logging.StreamHandler", "formatter": "f"},
        },
        root={"handlers": ["s", "h"], "level": "DEBUG"},
        formatters={"f": {"()": f"{HANDLERS}.RaisingFormatter"}},
    ),
}


@pytest.mark.parametrize("env", RAISES.values(), ids=RAISES)
def test_logging_that_raises_fails_no_task(start_worker: Start, ledger: Ledger, env: dict[str, str]) -> None:
    """28, 46: tasks are run and have their own outcomes, the worker stays, and says what it is about."""
    good = [tasks.noop.enqueue() for _ in range(5)]
    worker = start_worker(env=env, ready=False)
    bad = tasks.fail.enqueue("ValueError")
    wait_until(lambda: all(ledger.task(one.id).status == "SUCCESSFUL" for one in good))
    wait_until(lambda: ledger.task(bad.id).status == "FAILED")
    assert worker.stop() == 0
    assert "stopped" in worker.log
    assert "the site's logging raised" in worker.log or "KeyError" in worker.log


def test_a_handler_that_hangs_holds_up_nothing(start_worker: Start, ledger: Ledger) -> None:
    env = site({"h": {"class": f"{HANDLERS}.Hanging"}}, root={"handlers": ["h"], "level": "INFO"})
    results = [tasks.noop.enqueue() for _ in range(5)] + [tasks.add_sync.enqueue(1, 2)]
    bad = tasks.fail.enqueue("ValueError")
    worker = start_worker("--grace", "600", env=env, ready=False)
    wait_until(lambda: all(ledger.task(one.id).status == "SUCCESSFUL" for one in results))
    wait_until(lambda: ledger.task(bad.id).status == "FAILED")
    assert worker.stop(signal.SIGTERM) == 0
    assert "log records are dropped at the stop, because their handlers are too slow count=" in worker.log
    assert "log records are lost at the exit" in worker.log


MAILED = {"m": {"class": "django.utils.log.AdminEmailHandler", "level": "ERROR"}}


def mailing(mails: Path, seconds: float) -> dict[str, str]:
    """A site that mails each failure to ADMINS, which takes a while."""
    mails.touch()
    return {
        **site(MAILED, loggers={"django": {"handlers": ["m"], "level": "INFO"}}),
        "TEST_MAILS": str(mails),
        "TEST_MAIL_TIME": str(seconds),
        "TEST_ADMINS": ADMINS,
    }


def test_the_last_failures_are_mailed_before_the_exit(
    start_worker: Start, ledger: Ledger, tmp_path: Path
) -> None:
    """21."""
    for _ in range(20):
        tasks.fail.enqueue("ValueError")
    worker = start_worker("--until-empty", env=mailing(tmp_path / "mails", 0.2), ready=False)
    worker.wait()
    assert (tmp_path / "mails").read_text().count("sent") == 20


def test_what_the_end_of_the_grace_cuts_off_is_counted(
    start_worker: Start, ledger: Ledger, tmp_path: Path
) -> None:
    failing = [tasks.fail.enqueue("ValueError") for _ in range(5)]
    worker = start_worker("--grace", "1", env=mailing(tmp_path / "mails", 60.0))
    wait_until(lambda: all(ledger.task(one.id).status == "FAILED" for one in failing))
    assert worker.stop() == 0
    assert re.search(r"Log records wait for their handlers after the grace.* count=5\n", worker.log)
    assert "INFO aiotasks.worker: stopped" in worker.log


# 17: what the site's LOGGING is, whether its own handlers show the worker's log, and at which level a failure
# is there: as a warning where Django's record of it goes the same way.
CONSOLE = {"c": {"class": "logging.StreamHandler", "formatter": "f"}}
FORMATTED = {"formatters": {"f": {"format": "SITE %(levelname)s %(name)s: %(message)s"}}}
ROOT_AT_INFO = site(CONSOLE, root={"handlers": ["c"], "level": "INFO"}, **FORMATTED)
SITES: dict[str, tuple[dict[str, str], str, str]] = {
    "Django's default": (site({}, disable_existing_loggers=False), "ours", "ERROR"),
    "no LOGGING_CONFIG": ({**site({}), "TEST_LOGGING_CONFIG": "null"}, "ours", "WARNING"),
    "existing loggers disabled": (ROOT_AT_INFO, "theirs", "ERROR"),
    "root at WARNING": (
        site(CONSOLE, root={"handlers": ["c"], "level": "WARNING"}, **FORMATTED),
        "theirs",
        "ERROR",
    ),
    "a handler at ERROR": (
        site(
            {"c": {"class": "logging.StreamHandler", "formatter": "f", "level": "ERROR"}},
            root={"handlers": ["c"], "level": "WARNING"},
            **FORMATTED,
        ),
        "ours",
        "ERROR",
    ),
    "mails alone": (site(MAILED, root={"handlers": ["m"], "level": "ERROR"}), "ours", "ERROR"),
    "Django's records, too": (
        site(CONSOLE, root={"handlers": ["c"], "level": "INFO"}, disable_existing_loggers=False, **FORMATTED),
        "theirs",
        "WARNING",
    ),
    "Django's are mailed, too": (
        site(MAILED, root={"handlers": ["m"], "level": "ERROR"}, disable_existing_loggers=False),
        "ours",
        "WARNING",
    ),
}


def run_one_that_fails(start: Start, env: dict[str, str], tmp_path: Path, *command: str) -> tuple[str, str]:
    """Run a task that fails until all is empty; returns its id and the log."""
    (tmp_path / "mails").touch()
    mail = {"TEST_MAILS": str(tmp_path / "mails"), "TEST_MAIL_TIME": "0"}
    failing = tasks.fail.enqueue("ExceptionGroup")
    tasks.noop.enqueue()
    worker = start(*command, "--until-empty", env={**env, **mail, "TEST_ADMINS": ADMINS})
    assert worker.wait() == 3, worker.log
    return failing.id, worker.log


@pytest.mark.parametrize(("env", "whose", "level"), SITES.values(), ids=SITES)
def test_no_worker_is_silent(
    start: Start, ledger: Ledger, tmp_path: Path, env: dict[str, str], whose: str, level: str
) -> None:
    id, log = run_one_that_fails(start, env, tmp_path, "-m", "aiotasks.worker")
    mine = "aiotasks.worker: "
    if whose == "theirs":
        assert f"SITE {level} aiotasks.tasks: tests.worker.tasks.fail failed" in log
    ((found, line),) = re.findall(r"([A-Z]+) aiotasks.tasks: (tests.worker.tasks.fail failed .*)", log)
    assert found == level
    number = r"\d+\.\d{3}"
    assert re.fullmatch(
        rf"tests.worker.tasks.fail failed id={id} queue=default attempt=1 wait={number} took={number} "
        r"error='ExceptionGroup: several \(2 sub-exceptions\)' at=tests/worker/tasks.py:\d+ in _raise",
        line,
    )
    assert log.count("INFO aiotasks.tasks: tests.worker.tasks.noop succeeded id=") == 1
    assert log.count("Exception Group Traceback (most recent call last)") == 1, log
    for said in ("serves backend 'default'", "stopping, running=0", "stopped\n"):
        assert log.count(f"INFO {mine}{said}" if said != "serves backend 'default'" else said) == 1
    assert log.endswith(f"INFO {mine}until empty: succeeded=1 failed=1 given_back=0\n")


def test_manage_py_and_processes_say_the_same(start: Start, ledger: Ledger, tmp_path: Path) -> None:
    """17, 18: one line of counts and one exit code, however the worker was started."""
    env = SITES["Django's default"][0]
    for command in (["-m", "django", "aiotasks", "worker"], ["-m", "aiotasks.worker", "--processes", "2"]):
        id, log = run_one_that_fails(start, env, tmp_path, *command)

        assert len(re.findall(rf"ERROR aiotasks.tasks: tests.worker.tasks.fail failed id={id} ", log)) == 1
        assert "failed=1 given_back=0" in log
        assert log.count("Exception Group Traceback (most recent call last)") == 1
    assert log.count("until empty: ") == 2


def test_what_the_site_configures_holds(start: Start, ledger: Ledger, tmp_path: Path) -> None:
    env = site(CONSOLE, loggers={"aiotasks": {"handlers": ["c"], "level": "CRITICAL"}}, **FORMATTED)
    _, log = run_one_that_fails(start, env, tmp_path, "-m", "aiotasks.worker")
    assert log == ""


def output_of(kind: str) -> tuple[int, int | None]:
    """A descriptor that can't be written to, and one that must stay open meanwhile."""
    if kind == "full disk":
        return os.open("/dev/full", os.O_WRONLY), None
    reader, writer = os.pipe()
    if kind == "reader gone":
        os.close(reader)
        return writer, None
    os.set_blocking(writer, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    return writer, reader


@pytest.mark.parametrize("kind", ["reader gone", "full disk", "full pipe"])
def test_an_output_that_takes_nothing(worker_env: dict[str, str], ledger: Ledger, kind: str) -> None:
    """30: a task's print fails its task, the worker's own log fails nothing and holds up no stop."""
    output, reader = output_of(kind)
    # Printing into a full pipe waits, as anywhere.
    prints = tasks.print_something.enqueue() if kind != "full pipe" else None
    failing = tasks.fail.enqueue("ValueError")
    others = [tasks.noop.enqueue() for _ in range(20)]
    env = {**worker_env, **SITES["Django's default"][0]}
    command = [sys.executable, "-m", "aiotasks.worker", "--grace", "5"]
    worker = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        os.close(output)
        wait_until(lambda: all(ledger.task(one.id).status == "SUCCESSFUL" for one in others))
        wait_until(lambda: ledger.task(failing.id).status == "FAILED")
        if prints is not None:
            wait_until(lambda: ledger.task(prints.id).status == "FAILED")
            prints.refresh()
            assert prints.errors[0].exception_class_path in ("builtins.BrokenPipeError", "builtins.OSError")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(TIMEOUT) == 0
    finally:
        worker.kill()
        worker.wait()
        if reader is not None:
            os.close(reader)


async def test_an_embedded_worker_is_not_silent_and_waits_for_its_receivers(
    configure: Configure, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """17, 21: as a site embeds it, whose LOGGING has disabled the loggers that were there."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])  # pytest's
    monkeypatch.setattr(root, "level", logging.WARNING)
    monkeypatch.setattr(logging.getLogger("aiotasks.worker"), "disabled", True)
    heard: list[str] = []
    read: list[str] = []

    def said() -> str:
        read.append(capfd.readouterr().err)
        return "".join(read)

    async def slow(sender: type, task_result: Any, **kwargs: Any) -> None:
        await asyncio.sleep(1.5)  # longer than outcomes have
        heard.append(task_result.id)

    task_finished.connect(slow)
    try:
        async with aiotasks.Worker(grace=20):
            failing = await tasks.fail.aenqueue("ValueError")
            await until(lambda: "tests.worker.tasks.fail failed id=" in said())
    finally:
        task_finished.disconnect(slow)
    assert heard == [failing.id]
    assert said().count("INFO aiotasks.worker: stopped\n") == 1
    assert said().count("Traceback (most recent call last)") == 1
    logging.getLogger("aiotasks.worker").warning("without a worker LOGGING alone decides")
    assert "LOGGING alone" not in said()
