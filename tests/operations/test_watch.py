"""``status --watch``: at a terminal, into a pipe, through an outage, and its end."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from django.db import connection

from tests.proxy import Proxy
from tests.worker import harness

ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"


def wait_until(is_so: Callable[[], object]) -> None:
    """Several processes start one after the other, on a machine that may be busy."""
    harness.wait_until(is_so, 4 * harness.TIMEOUT)


class Watching:
    """A process of ``status --watch``, and what it has written to its terminal."""

    def __init__(self, environment: dict[str, str], lines: int) -> None:
        self.leader, follower = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "django", "aiotasks", "status", "--watch", "0.1"],
            env={**environment, "COLUMNS": "100", "LINES": str(lines), "TERM": "xterm"},
            stdout=follower,
            stderr=follower,
        )
        os.close(follower)
        os.set_blocking(self.leader, False)
        self.text = ""

    def read(self) -> str:
        try:
            while written := os.read(self.leader, 65_536):
                self.text += written.decode()
        except OSError:  # nothing yet, or the end
            pass
        return self.text

    def wait_for(self, words: str, since: int = 0) -> None:
        wait_until(lambda: words in self.read()[since:])

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        wait_until(lambda: self.read() is not None and self.process.poll() is not None)
        self.read()
        return self.process.returncode


@contextmanager
def watching(environment: dict[str, str], *, lines: int = 50) -> Iterator[Watching]:
    found = Watching(environment, lines)
    try:
        yield found
    finally:
        found.process.kill()
        found.process.wait()
        os.close(found.leader)


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """A run of the tests in a shell's background ignores them, and so would the processes that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_at_a_terminal(
    worker_env: dict[str, str], fill: Callable[..., None], number: signal.Signals, code: int
) -> None:
    fill("READY", 3)
    with watching(worker_env) as seen:
        seen.wait_for("default")
        assert seen.text.count(ENTER) == 1
        fill("READY", 4)
        wait_until(lambda: re.search(r"\bdefault +7 ", seen.read()))
        assert seen.end(number) == code
        assert seen.text.count(LEAVE) == 1
        assert seen.text.index(LEAVE) > seen.text.rindex("\x1b[H")
        assert "Traceback" not in seen.text


def test_a_low_terminal_shows_how_much_is_left_out(
    worker_env: dict[str, str], fill: Callable[..., None]
) -> None:
    for number in range(30):
        fill("READY", 1, f"queue-{number:02}")
    with watching(worker_env, lines=12) as seen:
        seen.wait_for("more lines: make the window higher.")
        frame = seen.text[seen.text.index("\x1b[H") :].partition("\x1b[J")[0]
        assert frame.count("\n") == 11


def test_through_an_outage(worker_env: dict[str, str], fill: Callable[..., None]) -> None:
    fill("READY", 3)
    here = connection.settings_dict
    with Proxy(here["HOST"], int(here["PORT"])) as proxy:
        environment = {**worker_env, "AIOTASKS_DB_HOST": "127.0.0.1", "AIOTASKS_DB_PORT": str(proxy.port)}
        with watching(environment) as seen:
            seen.wait_for("default")
            proxy.mode = "refuse"
            seen.wait_for("this is the last answer")
            proxy.mode = "pass"
            began = len(seen.read())
            wait_until(
                lambda: any(
                    "default" in frame and "last answer" not in frame
                    for frame in seen.read()[began:].split("\x1b[H")[1:-1]
                )
            )
            assert seen.end(signal.SIGINT) == 0


def test_into_a_pipe_and_as_json(worker_env: dict[str, str], fill: Callable[..., None]) -> None:
    fill("READY", 3)
    command = [sys.executable, "-m", "django", "aiotasks", "status", "--watch", "0.1"]
    with subprocess.Popen([*command, "--json"], env=worker_env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(3):
            (queue,) = json.loads(process.stdout.readline())["queues"]
            assert queue["ready"] == {"number": 3, "capped": False}
        process.send_signal(signal.SIGINT)
    assert process.returncode == 0
    with subprocess.Popen(command, env=worker_env, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        for _ in range(2):
            assert next(line for line in lines if line.startswith("default  "))
        process.send_signal(signal.SIGINT)
        assert "\x1b" not in process.stdout.read()
    assert process.returncode == 0
