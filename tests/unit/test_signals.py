"""Who would hear a signal: nobody is told of what nobody hears, and nobody who hears is left out."""

import logging
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from django.dispatch import Signal
from django.tasks import signals as django_signals

from aiotasks import signals
from aiotasks.backend import PostgresBackend
from aiotasks.signals import Audience, audience

SIGNALS = {
    "enqueued": (django_signals.task_enqueued, django_signals.log_task_enqueued),
    "started": (django_signals.task_started, django_signals.log_task_started),
    "finished": (django_signals.task_finished, django_signals.log_task_finished),
}


@pytest.fixture(autouse=True)
def looked_up_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "KEPT_FOR", 0.0)
    signals._kept.clear()


@pytest.fixture(params=SIGNALS)
def signal(request: pytest.FixtureRequest) -> Signal:
    return SIGNALS[request.param][0]


def heard(signal: Signal, *handlers: logging.Handler) -> Audience:
    """The audience with these handlers on the root logger; pytest has some there."""
    root = logging.getLogger()
    kept, root.handlers = root.handlers, [*handlers]
    try:
        return audience(signal, PostgresBackend)
    finally:
        root.handlers = kept


def receiver(sender: Any, **kwargs: Any) -> None:
    raise AssertionError


async def areceiver(sender: Any, **kwargs: Any) -> None:
    raise AssertionError


@pytest.fixture
def connect(signal: Signal) -> Iterator[Callable[..., None]]:
    yield signal.connect
    for sender in (None, PostgresBackend, int):
        for function in (receiver, areceiver):
            signal.disconnect(function, sender=sender)


def test_under_djangos_default_logging_nobody(signal: Signal) -> None:
    assert heard(signal) is Audience.NOBODY


def test_with_debug_its_console(signal: Signal, settings: Any) -> None:
    settings.DEBUG = True
    at_info = signal is not django_signals.task_enqueued  # which is logged at DEBUG
    assert heard(signal) is (Audience.LOGS if at_info else Audience.NOBODY)


@pytest.mark.parametrize(
    ("level", "kept"), [(logging.NOTSET, True), (logging.INFO, True), (logging.ERROR, False)]
)
def test_a_handler_of_the_sites(level: int, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the root logger, as most have them; a failure, which is an ERROR, isn't asked about."""
    handler = logging.NullHandler(level)
    expected = Audience.LOGS if kept else Audience.NOBODY
    assert heard(django_signals.task_started, handler) is expected
    monkeypatch.setattr(logging.getLogger("django"), "propagate", False)
    assert heard(django_signals.task_started, handler) is Audience.NOBODY


def test_an_answer_is_used_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of LOGGING counts a moment later, for a worker asks twice a task."""
    now = [0.0]
    monkeypatch.setattr(signals, "KEPT_FOR", 1.0)
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: now[0]))
    handler = logging.NullHandler()
    assert heard(django_signals.task_started) is Audience.NOBODY
    now[0] = 0.9
    assert heard(django_signals.task_started, handler) is Audience.NOBODY
    now[0] = 1.0
    assert heard(django_signals.task_started, handler) is Audience.LOGS


def test_a_handler_with_a_filter_of_the_sites() -> None:
    """Only Django's own are known to let nothing through."""
    handler = logging.NullHandler()
    handler.addFilter(lambda record: False)
    assert heard(django_signals.task_started, handler) is Audience.LOGS


def test_without_any_handler_there_is_the_last_resort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("django"), "handlers", [])
    assert heard(django_signals.task_started) is Audience.NOBODY  # it begins at WARNING
    monkeypatch.setattr(logging, "lastResort", logging.NullHandler())
    assert heard(django_signals.task_started) is Audience.LOGS
    # Which isn't asked where there is one that keeps nothing.
    assert heard(django_signals.task_started, logging.NullHandler(logging.ERROR)) is Audience.NOBODY


def test_a_filter_on_the_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may do anything with a record."""
    monkeypatch.setattr(django_signals.logger, "filters", [lambda record: True])
    assert heard(django_signals.task_started) is Audience.LOGS


def test_a_tool_that_looks_at_all_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Sentry does, in place of the logger's method."""
    call_handlers = logging.Logger.callHandlers

    def patched(self: logging.Logger, record: logging.LogRecord) -> None:
        call_handlers(self, record)

    monkeypatch.setattr(logging.Logger, "callHandlers", patched)
    assert heard(django_signals.task_started) is Audience.LOGS

    class Proxy:
        """No function, but it looks like the one that it stands for: as wrapt's do."""

        __module__ = "logging"

    monkeypatch.setattr(logging.Logger, "callHandlers", Proxy())
    assert heard(django_signals.task_started) is Audience.LOGS
    # But never what the logger's level keeps from it.
    assert heard(django_signals.task_enqueued) is Audience.NOBODY


@pytest.mark.parametrize("function", [receiver, areceiver])
@pytest.mark.parametrize("sender", [None, PostgresBackend])
def test_a_receiver(signal: Signal, connect: Callable[..., None], function: Any, sender: Any) -> None:
    connect(function, sender=sender)
    assert heard(signal) is Audience.RECEIVERS


def test_another_senders_receiver(signal: Signal, connect: Callable[..., None]) -> None:
    connect(receiver, sender=int)
    assert heard(signal) is Audience.NOBODY


@pytest.mark.parametrize("name", SIGNALS)
def test_with_djangos_own_disconnected_nobody(name: str) -> None:
    signal, own = SIGNALS[name]
    handler = logging.NullHandler()
    django_signals.logger.setLevel(logging.DEBUG)
    try:
        assert heard(signal, handler) is Audience.LOGS
        assert signal.disconnect(own)
        assert heard(signal, handler) is Audience.NOBODY
        signal.connect(receiver)
        assert heard(signal, handler) is Audience.RECEIVERS
    finally:
        signal.disconnect(receiver)
        signal.connect(own)
        django_signals.logger.setLevel(logging.NOTSET)
