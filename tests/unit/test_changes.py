"""Changes of awaited tasks, as NOTIFY tells of them; and the Outbox that sends them."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import utils

from aiotasks.store import changes
from aiotasks.store.changes import CHANNEL, Teller, payloads_of, read_ids


def test_ids_come_back_and_fit() -> None:
    ids = [uuid4() for _ in range(501)]
    payloads = payloads_of(ids)
    assert [len(json.loads(payload)) for payload in payloads] == [200, 200, 101]
    assert max(map(len, payloads)) < 8000
    assert [id for payload in payloads for id in read_ids(payload) or []] == ids


@pytest.mark.parametrize(
    "payload", ["", "{", "{}", '"x"', "null", "1", '["x"]', "[1]", "[null]", "[[]]", "[" * 3000]
)
def test_a_strangers_payload_says_nothing(payload: str) -> None:
    assert read_ids(payload) is None


class Sent:
    """Stands where the Store does, and keeps what was to be sent."""

    def __init__(self) -> None:
        self.calls: list[list[UUID]] = []
        self.gate = asyncio.Event()
        self.begun = asyncio.Event()
        self.error: Exception | None = None

    async def notify(self, channel: str, payloads: Sequence[str], *, alone: bool) -> None:
        assert channel == CHANNEL
        assert alone
        self.calls.append([id for payload in payloads for id in read_ids(payload) or []])
        self.begun.set()
        await self.gate.wait()
        if self.error is not None:
            raise self.error


async def test_those_that_come_while_one_is_under_way_go_together() -> None:
    sent: Any = Sent()
    teller = Teller(sent, notifies=True)
    first, *others = (uuid4() for _ in range(500))
    teller.tell([first])
    await sent.begun.wait()
    for id in others:
        teller.tell([id])
        teller.tell([id])
    sent.gate.set()
    await teller.all_sent()
    assert [len(call) for call in sent.calls] == [1, 499]
    assert {id for call in sent.calls for id in call} == {first, *others}


async def test_nothing_is_sent_for_nobody_or_without_notify() -> None:
    sent: Any = Sent()
    sent.gate.set()
    Teller(sent, notifies=True).tell([])
    teller = Teller(sent, notifies=False)
    teller.tell([uuid4()])
    await teller.all_sent()
    await teller.send_what_is_left()
    assert sent.calls == []


async def test_a_failure_is_nobodys(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task's end is committed: joins poll. What was lost goes with the last words of the loop."""
    monkeypatch.setattr(changes, "SEND_TIMEOUT", 0.0)
    caplog.set_level("INFO", "aiotasks.store")
    sent: Any = Sent()
    sent.error = utils.OperationalError("gone")
    sent.gate.set()
    teller, id = Teller(sent, notifies=True), uuid4()
    teller.tell([id])
    await teller.all_sent()
    assert "NOTIFY of tasks' ends was not sent" in caplog.text
    sent.error = None
    await teller.send_what_is_left()
    assert sent.calls == [[id], [id]]
