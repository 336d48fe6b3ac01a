"""The worker as a service of systemd: what it sends to NOTIFY_SOCKET."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from aiotasks.worker.process.sd_notify import ServiceManager

from . import tasks
from .harness import Ledger, Start, wait_until
from .test_health import LIVE_WITHIN
from .test_supervisor import workers_of


class Manager:
    """Stands for systemd."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self._socket.setblocking(False)
        self.lines: list[str] = []

    def has(self, line: str) -> bool:
        """Whether a line that begins so has come."""
        try:
            while True:
                self.lines += self._socket.recv(65536).decode().split("\n")
        except BlockingIOError:
            return any(one.startswith(line) for one in self.lines)

    def forget(self) -> None:
        self.has("")
        self.lines.clear()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(os.fspath(tmp_path / "notify"))
    yield manager
    manager.close()


@pytest.fixture
def notify_env(tmp_path: Path) -> dict[str, str]:
    return {"NOTIFY_SOCKET": os.fspath(tmp_path / "notify"), "WATCHDOG_USEC": "200000"}


@pytest.mark.parametrize("number", [1, 2])
def test_a_service_starts_lives_and_stops(
    start: Start, ledger: Ledger, manager: Manager, notify_env: dict[str, str], number: int
) -> None:
    worker = start("-m", "aiotasks.worker", "--processes", str(number), env=notify_env)
    wait_until(lambda: manager.has("READY=1"))
    wait_until(lambda: manager.has("WATCHDOG=1"))
    status = "running 0 of 110, lease " if number == 1 else "2 of 2 processes ready"
    wait_until(lambda: manager.has(f"STATUS={status}"))
    assert not manager.has("STOPPING=1")
    for child in workers_of(worker):
        assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & psutil.Process(child).environ().keys()
    result = tasks.environment.enqueue()
    wait_until(lambda: ledger.task(result.id).status == "SUCCESSFUL")
    found = set(ledger.task(result.id).return_value)
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "AIOTASKS_REPORTS"} & found
    manager.forget()
    worker.send(signal.SIGTERM)
    wait_until(lambda: manager.has("STOPPING=1"))
    assert worker.wait() == 0


def test_one_that_makes_way_is_not_killed(
    start: Start, ledger: Ledger, manager: Manager, notify_env: dict[str, str], tmp_path: Path
) -> None:
    """After STOPPING=1 systemd would kill it TimeoutStopSec later, while its task runs."""
    go = tmp_path / "go"
    worker = start("-m", "aiotasks.worker", "--max-tasks", "1", env=notify_env)
    long = tasks.wait_for_file.enqueue(os.fspath(go))
    wait_until(lambda: ledger.task(long.id).status == "RUNNING")
    tasks.add.enqueue(1, 2)
    # All is received at once, because what doesn't fit into the socket's queue is lost.
    wait_until(lambda: manager.has("") and "stopping, running=1 grace=600" in worker.log)
    before = manager.lines.count("WATCHDOG=1")
    wait_until(lambda: manager.has("") and manager.lines.count("WATCHDOG=1") > before)
    go.touch()
    assert worker.wait() == 75
    assert not manager.has("STOPPING=1")


def test_it_is_ready_only_with_its_database(
    start: Start, ledger: Ledger, manager: Manager, notify_env: dict[str, str]
) -> None:
    start("-m", "aiotasks.worker", env={**notify_env, "AIOTASKS_DB_PORT": "1"})
    wait_until(lambda: manager.has("STATUS=the database has not been reached"))
    wait_until(lambda: manager.has("WATCHDOG=1"))
    assert not manager.has("READY=1")


def test_no_sign_of_life_while_the_loop_is_blocked_for_long(
    start: Start, ledger: Ledger, manager: Manager, notify_env: dict[str, str], tmp_path: Path
) -> None:
    go = tmp_path / "go"
    start("-c", LIVE_WITHIN.format(0.6), env=notify_env)
    wait_until(lambda: manager.has("READY=1"))
    tasks.block_until_file.enqueue(os.fspath(go))
    wait_until(lambda: ledger.events("start") == 1)

    def is_silent() -> bool:
        """Whether three statuses have come without a sign of life."""
        manager.forget()
        wait_until(lambda: manager.has("STATUS=") and len(manager.lines) >= 3)
        return "WATCHDOG=1" not in manager.lines

    wait_until(is_silent)
    go.touch()
    wait_until(lambda: manager.has("WATCHDOG=1"))


def test_the_environment_is_read_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def found(address: str, micros: str = "", pid: str = "") -> ServiceManager | None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        monkeypatch.setenv("WATCHDOG_USEC", micros)
        monkeypatch.setenv("WATCHDOG_PID", pid)
        manager = ServiceManager.from_environment()
        assert ServiceManager.from_environment() is None
        return manager

    assert found("") is None
    assert found("vsock:2:1234") is None
    for micros, pid, seconds in [
        ("2000000", "", 2.0),
        ("2000000", str(os.getpid()), 2.0),
        ("2000000", "1", None),
        ("", "", None),
        ("0", "", None),
        ("many", "", None),
    ]:
        manager = found("/run/notify", micros, pid)
        assert manager is not None
        assert manager._watchdog == seconds


def test_an_abstract_socket_and_nobody_there(tmp_path: Path) -> None:
    name = f"aiotasks-test-{os.getpid()}"
    manager = Manager(f"\0{name}")
    ServiceManager(f"@{name}", None).notify("READY=1", "STATUS=x")
    assert manager.has("READY=1")
    assert manager.lines == ["READY=1", "STATUS=x"]
    manager.close()
    ServiceManager(f"@{name}", None).notify("READY=1")
    ServiceManager(os.fspath(tmp_path / "nowhere"), None).notify("READY=1")
