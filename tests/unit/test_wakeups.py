"""Wake-ups: what is said, what is understood, and that a thousand are one."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import utils
from hypothesis import given
from hypothesis import strategies as st

from aiotasks.store import notifier as notifier_module
from aiotasks.store.notifier import Notifier
from aiotasks.store.wakeups import CHANNEL, Wakeup, read_payload, wakeups_of
from tests.store.rows import new_job

MAX_NAME = 200


@given(
    st.builds(
        Wakeup,
        backend=st.text(min_size=1),
        queue_name=st.text(min_size=1, max_size=MAX_NAME),
        due=st.none() | st.floats(0, 1e11),
    )
)
def test_what_is_said_is_understood(wakeup: Wakeup) -> None:
    assert read_payload(wakeup.payload()) == wakeup


def test_a_cancellation_is_understood() -> None:
    wakeup = Wakeup("default", "q", cancel=True)
    assert read_payload(wakeup.payload()) == wakeup


def test_a_wakeup_for_tasks_with_limits_is_nothing_to_an_older_release() -> None:
    """It has neither the lanes nor the word."""
    for wakeup in (Wakeup("default", "q", keyed=True), Wakeup("default", "q", lane="thread", keyed=True)):
        assert wakeup.payload() == '["default", "q", null, "keyed"]'
        assert read_payload(wakeup.payload()) == Wakeup("default", "q", keyed=True)
    assert read_payload('["default", "q", "thread+", 1, 2]') == Wakeup(
        "default", "q", lane="thread", passed=1, place=2, keyed=True
    )


def test_tasks_with_limits_have_wakeups_of_their_own() -> None:
    """One a lane, whatever their keys; of the same template, too."""
    plain = new_job(queue_name="a")
    keyed = [replace(plain, limit_key=f"k:{number}") for number in range(3)]
    assert set(wakeups_of([plain, *keyed])) == {
        Wakeup("default", "a", lane="loop"),
        Wakeup("default", "a", lane="loop", keyed=True),
    }


def test_the_longest_queue_name_fits_into_a_payload() -> None:
    assert len(Wakeup("default", "\U0001f600" * MAX_NAME, 1e10).payload().encode()) < 8000


@given(
    st.text() | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(json.dumps)
)
def test_strangers_payloads_never_raise(payload: str) -> None:
    found = read_payload(payload)
    assert found is None or isinstance(found, Wakeup)


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "{}",
        "[]",
        "[" * 100_000,
        '"a"',
        "1e999",
        '["a"]',
        '["a", "b"]',
        '["a", 1, null]',
        '[null, "b", null]',
        '["a", "b", "c"]',
        '["a", "b", [1]]',
        '["a", "b", null, 5]',
        '["a", "b", null, false]',
    ],
    ids=lambda payload: payload[:20],
)
def test_strangers_payloads_are_nothing(payload: str) -> None:
    assert read_payload(payload) is None


def test_one_wake_up_for_a_queue() -> None:
    now = datetime.now(UTC)
    soon, later = now + timedelta(minutes=1), now + timedelta(hours=1)
    jobs = [
        *(new_job(queue_name="a") for _ in range(5)),
        new_job(queue_name="a", run_after=later),
        new_job(queue_name="a", run_after=soon),
        new_job(queue_name="b", run_after=later),
        new_job(queue_name="a", backend="other"),
    ]
    assert set(wakeups_of(jobs)) == {
        Wakeup("default", "a", lane="loop"),
        Wakeup("default", "a", soon.timestamp()),
        Wakeup("default", "b", later.timestamp()),
        Wakeup("other", "a", lane="loop"),
    }
    assert len(wakeups_of(jobs)) == 4


class Sent:
    """Stands where the Store does, and keeps what was to be sent."""

    def __init__(self) -> None:
        self.calls: list[Sequence[str]] = []
        self.gate = asyncio.Event()
        self.begun = asyncio.Event()
        self.error: Exception | None = None

    async def notify(self, channel: str, payloads: Sequence[str], *, alone: bool) -> None:
        assert channel == CHANNEL
        assert alone
        self.calls.append(payloads)
        self.begun.set()
        await self.gate.wait()
        if self.error is not None:
            raise self.error


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier_module, "throttle", notifier_module.NotifyThrottle())
    monkeypatch.setattr(notifier_module, "SEND_TIMEOUT", 0.0)


async def test_those_that_come_while_one_is_under_way_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifier_module, "INTERVAL", 0.0)  # so that none is known already
    sent: Any = Sent()
    notifier = Notifier(sent, "default")
    notifier.notify([Wakeup("default", "a")])
    await sent.begun.wait()
    for _ in range(500):
        notifier.notify([Wakeup("default", "a"), Wakeup("default", "b")])
    sent.gate.set()
    await notifier.all_sent()
    assert [sorted(payloads) for payloads in sent.calls] == [
        [Wakeup("default", "a").payload()],
        [Wakeup("default", "a").payload(), Wakeup("default", "b").payload()],
    ]


async def test_what_was_told_a_moment_ago_is_not_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    sent: Any = Sent()
    sent.gate.set()
    notifier = Notifier(sent, "default")
    for _ in range(3):
        notifier.notify([Wakeup("default", "a")])
        await notifier.all_sent()
    notifier.notify([Wakeup("default", "b"), Wakeup("default", "a", cancel=True)])
    await notifier.all_sent()
    notifier.notify([Wakeup("default", "a", cancel=True)])  # looked for once, so told each time
    await notifier.all_sent()
    assert [len(payloads) for payloads in sent.calls] == [1, 2, 1]
    now += notifier_module.INTERVAL * 1.01
    notifier.notify([Wakeup("default", "a")])
    await notifier.all_sent()
    assert len(sent.calls) == 4


async def test_a_failure_is_nobodys_and_is_told_again(caplog: pytest.LogCaptureFixture) -> None:
    """The tasks are committed: workers poll. What nobody heard isn't known."""
    caplog.set_level("INFO", "aiotasks.store")
    sent: Any = Sent()
    sent.error = utils.OperationalError("gone")
    sent.gate.set()
    notifier = Notifier(sent, "default")
    notifier.notify([Wakeup("default", "a")])
    await notifier.all_sent()
    sent.error = None
    notifier.notify([Wakeup("default", "a")])
    await notifier.all_sent()
    assert len(sent.calls) == 2
    assert "NOTIFY was not sent" in caplog.text
