"""The loop on which sync code waits: started at its first use, shared, ended when idle."""

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from aiotasks.store import loop_thread
from aiotasks.store.loop_thread import run_on_loop


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "aiotasks-joins"]


def until_none() -> None:
    end = time.monotonic() + 30
    while threads():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(loop_thread, "IDLE_TIMEOUT", 0.05)
    yield
    until_none()


async def loop_of() -> asyncio.AbstractEventLoop:
    await asyncio.sleep(0)
    return asyncio.get_running_loop()


def test_it_ends_when_idle_and_begins_again() -> None:
    first = run_on_loop(loop_of)
    assert run_on_loop(loop_of) is first
    until_none()
    assert first.is_closed()
    assert run_on_loop(loop_of) is not first


def test_all_sync_code_shares_it() -> None:
    gate = threading.Event()
    found: list[Any] = []

    async def wait() -> asyncio.AbstractEventLoop:
        while not gate.is_set():  # noqa: ASYNC110  # another thread sets it
            await asyncio.sleep(0.01)
        return asyncio.get_running_loop()

    callers = [threading.Thread(target=lambda: found.append(run_on_loop(wait))) for _ in range(20)]
    for caller in callers:
        caller.start()
    time.sleep(0.2)  # longer than it would take to be idle
    assert len(threads()) == 1
    gate.set()
    for caller in callers:
        caller.join(30)
    assert len(set(found)) == 1
    assert len(found) == 20


def test_an_interrupt_cancels_what_runs_there(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    begun = threading.Event()

    async def wait() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    class Interrupted:
        """A future whose wait a Ctrl-C ends."""

        def __init__(self, future: Any) -> None:
            self._future = future

        def result(self) -> None:
            assert begun.wait(30)
            raise KeyboardInterrupt

        def cancel(self) -> None:
            self._future.cancel()

    threadsafe = asyncio.run_coroutine_threadsafe
    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", lambda *args: Interrupted(threadsafe(*args)))
    with pytest.raises(KeyboardInterrupt):
        run_on_loop(wait)
    assert ended.wait(30)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_machine_that_refuses_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing hangs, and the next use tries again."""

    def refuse(main: Any) -> None:
        main.close()
        raise OSError("Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "run", refuse)
        with pytest.raises(RuntimeError, match="could not be started"):
            run_on_loop(loop_of)
    assert run_on_loop(loop_of).is_running()
