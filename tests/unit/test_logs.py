"""Loggers whose records go through threads while a worker runs, and harm nobody."""

import asyncio
import contextvars
import logging
import os
import pkgutil
import threading
from collections.abc import Iterator
from importlib import import_module
from typing import NoReturn

import pytest

import aiotasks
from aiotasks import logs
from aiotasks.logs import last_resort, lifecycle, loggers, threads
from tests.worker.harness import until

logger = logging.getLogger("aiotasks.worker")
others = logging.getLogger("django.tasks")
variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


class Listed(logging.Handler):
    """Keeps what it is given, once ``open`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.open.set()
        self.seen: list[tuple[str, str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.open.wait()
        self.seen.append((record.getMessage(), variable.get(), threading.current_thread().name))

    @property
    def messages(self) -> list[str]:
        return [message for message, _, _ in self.seen]


@pytest.fixture
def handler() -> Iterator[Listed]:
    handler = Listed()
    logging.getLogger().addHandler(handler)
    yield handler
    handler.open.set()
    logging.getLogger().removeHandler(handler)


@pytest.fixture
def threaded() -> Iterator[None]:
    logs.start()
    yield
    logs.stop()


def test_every_logger_of_the_package_is_guarded() -> None:
    for module in pkgutil.walk_packages(aiotasks.__path__, "aiotasks."):
        if not module.name.endswith("__main__") and ".demo" not in module.name:
            import_module(module.name)
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "aiotasks"]
    assert "aiotasks.worker" in names
    assert [name for name in names if not isinstance(logging.getLogger(name), loggers.OwnLogger)] == []


def test_without_a_worker_records_are_handled_where_they_are_logged(handler: Listed) -> None:
    logger.warning("here")
    assert handler.seen == [("here", "unset", threading.current_thread().name)]


def test_beside_one_in_a_thread_in_order_and_in_their_context(handler: Listed, threaded: None) -> None:
    for number in range(100):
        token = variable.set(str(number))
        logger.warning("%d", number)
        variable.reset(token)
    assert logs.flush(10)
    assert handler.seen == [(str(number), str(number), "aiotasks-log") for number in range(100)]


def test_an_exception_and_the_caller_are_in_the_record(
    caplog: pytest.LogCaptureFixture, threaded: None
) -> None:
    try:
        raise ValueError("no")
    except ValueError:
        others.exception("failed", extra={"tenant": 7})
    assert logs.flush(10)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[0] is ValueError
    assert (record.funcName, record.threadName) == (
        "test_an_exception_and_the_caller_are_in_the_record",
        threading.current_thread().name,
    )
    assert record.tenant == 7  # type: ignore[attr-defined]


@pytest.mark.parametrize("logged_by", [logger, others], ids=["ours", "Django's"])
def test_what_logging_raises_is_nobodys(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], logged_by: logging.Logger
) -> None:
    def fails(*args: object, **kwargs: object) -> NoReturn:
        raise LookupError("a site's")

    failures = last_resort.LoggingFailures()
    for module in (loggers, threads):
        monkeypatch.setattr(module, "failures", failures)
    factory = logging.getLogRecordFactory()
    logged_by.addFilter(fails)
    try:
        logged_by.error("one")
        logging.setLogRecordFactory(fails)
        logged_by.error("two")
    finally:
        logging.setLogRecordFactory(factory)
        logged_by.removeFilter(fails)
    assert capfd.readouterr().err.count("the site's logging raised LookupError") == 1  # then once a minute


def test_a_full_queue_drops_and_counts(
    handler: Listed, threaded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "MOST_WAITING", 10)
    handler.open.clear()
    for number in range(100):
        logger.warning("%d", number)
    others.warning("has a queue of its own")
    assert not logs.flush(0)
    assert logs.count_waiting() >= 10
    handler.open.set()
    assert logs.flush(10)
    assert logs.flush(10)  # the line that says so was logged meanwhile
    numbers = [int(message) for message in handler.messages if message.isdigit()]
    assert numbers == sorted(numbers)
    assert 10 <= len(numbers) < 100  # 11 if the first was handled at once
    (said,) = [message for message in handler.messages if message.startswith("log records were dropped")]
    assert said.endswith(f"count={100 - len(numbers)}")


async def test_flushed_on_a_loop(handler: Listed, threaded: None) -> None:
    handler.open.clear()
    logger.warning("one")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(logs.flushed(), 0.05)
    handler.open.set()
    await logs.flushed()
    assert handler.messages == ["one"]


@pytest.mark.parametrize("level", [logging.INFO, logging.ERROR], ids=["lesser", "error"])
async def test_a_stop_waits_for_errors_alone(
    handler: Listed,
    threaded: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    level: int,
) -> None:
    """Slow handlers get a limit of their own for the rest, which is dropped and counted."""
    monkeypatch.setattr(lifecycle, "PATIENCE", 0.05)
    handler.open.clear()
    others.log(level, "handled")
    assert loggers.threads is not None
    slow = loggers.threads[1]
    await until(lambda: logs.count_waiting() == 1 and slow.current is not None)
    for number in range(10):
        others.warning("waits %d", number)
    others.error("an error")
    logger.warning("ours")
    stopping = asyncio.ensure_future(logs.flushed_at_stop())
    said = ""

    def is_said() -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return "log records are dropped" in said

    await until(is_said)
    assert "because their handlers are too slow count=10\n" in said
    if level < logging.ERROR:
        await stopping  # the thread is stuck in a record below ERROR
        assert handler.messages == []
    else:
        await asyncio.sleep(0.1)
        assert not stopping.done()
    handler.open.set()
    await stopping
    await logs.flushed()
    assert sorted(handler.messages) == ["an error", "handled", "ours"]


def test_a_forked_child_has_no_thread_and_logs_all_the_same(handler: Listed, threaded: None) -> None:
    handler.open.clear()
    logger.warning("the parent's")
    handler.open.set()
    if not (pid := os.fork()):
        handler.seen.clear()
        logger.warning("the child's")
        os._exit(0 if "the child's" in handler.messages and logs.flush(0) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_two_workers_in_a_process(handler: Listed, threaded: None) -> None:
    logs.start()
    logs.stop()
    logger.warning("still by the thread")
    assert logs.flush(10)
    assert handler.seen == [("still by the thread", "unset", "aiotasks-log")]
