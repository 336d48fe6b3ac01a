"""When a worker whose threads are stuck asks for a new process."""

import asyncio
from typing import Any

import pytest

from aiotasks.worker.events import Observer
from aiotasks.worker.recycler import PATIENCE, Recycler


class Around:
    """The parts around it: threads, deadlines, work and heartbeat."""

    def __init__(self, threads: int = 2) -> None:
        self.seconds: list[float] = []
        self.threads = threads
        self.idle = False
        self.beats = 0
        self.stuck_changed = asyncio.Event()
        self.worn, self.exhausted = asyncio.Event(), asyncio.Event()
        part: Any = self
        self.recycler = Recycler(part, part, part, part, Observer(), worn=self.worn, exhausted=self.exhausted)

    @property
    def stuck(self) -> int:
        return len(self.seconds)

    @property
    def usable(self) -> int:
        return self.threads - self.stuck

    def stuck_for(self) -> list[float]:
        return self.seconds

    def is_idle(self) -> bool:
        return self.idle

    def beat_now(self) -> None:
        self.beats += 1

    def look(self, *seconds: float) -> tuple[bool, bool]:
        """Look while threads are stuck for so many seconds each."""
        self.seconds = list(seconds)
        self.recycler.look()
        return self.worn.is_set(), self.exhausted.is_set()


@pytest.mark.parametrize("idle", [False, True])
def test_threads_that_come_back_soon_are_waited_for(idle: bool) -> None:
    around = Around()
    around.idle = idle
    assert around.look(0.0) == (False, False)
    assert around.look(PATIENCE / 2) == (False, False)
    assert around.look(PATIENCE / 2, 0.0) == (False, False)  # no thread is left
    assert around.look() == (False, False)
    assert around.look(0.0) == (False, False)  # another
    assert around.beats == 4


def test_other_threads_than_before_are_stuck() -> None:
    """All of them were, all of the time, but none for long."""
    around = Around()
    for _ in range(10):
        assert around.look(PATIENCE - 1, 0.0) == (False, False)


def test_an_idle_worker_is_worn() -> None:
    around = Around()
    assert around.look(PATIENCE) == (False, False)
    around.idle = True
    assert around.look(PATIENCE) == (True, False)
    assert around.look() == (False, False)


def test_a_busy_worker_is_once_it_has_no_thread() -> None:
    around = Around()
    assert around.look(3 * PATIENCE, 1.0) == (False, False)
    assert around.look(3 * PATIENCE, PATIENCE) == (True, True)
    assert around.look() == (False, False)
