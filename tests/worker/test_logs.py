"""What a site's logging can do to a worker (nothing), and what a worker says in spite of LOGGING."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import django
import pytest

from tests.worker import tasks
from tests.worker.harness import Ledger, Start, wait_until

HANDLERS = "tests.worker.handlers"


def site(handlers: dict[str, Any], *, root: dict[str, Any] | None = None, **more: Any) -> dict[str, str]:
    """The environment of a worker of a site with this LOGGING."""
    logging = {"version": 1, "handlers": handlers, **({"root": root} if root else {}), **more}
    return {"DJANGO_SETTINGS_MODULE": "tests.worker.settings_logs", "TEST_LOGGING": json.dumps(logging)}


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
    worker = start_worker("--grace", "1", env=env, ready=False)
    wait_until(lambda: all(ledger.task(one.id).status == "SUCCESSFUL" for one in results))
    wait_until(lambda: ledger.task(bad.id).status == "FAILED")
    assert worker.stop(signal.SIGTERM) == 0
    assert "log records are lost at the exit" in worker.log


MAILED = {"m": {"class": "django.utils.log.AdminEmailHandler", "level": "ERROR"}}


def mailing(mails: Path, seconds: float) -> dict[str, str]:
    """A site that mails each failure to ADMINS, which takes a while."""
    mails.touch()
    return {
        **site(MAILED, loggers={"django": {"handlers": ["m"], "level": "INFO"}}),
        "TEST_MAILS": str(mails),
        "TEST_MAIL_TIME": str(seconds),
        "TEST_ADMINS": "pairs" if django.VERSION < (6, 1) else "addresses",
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
    assert re.search(r"log records wait for their handlers after the grace.* count=5\n", worker.log)
    assert "INFO aiotasks.worker: stopped" in worker.log
