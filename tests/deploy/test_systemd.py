"""docs/deploy/aiotasks.service."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aiotasks.conf import Options
from aiotasks.worker.health import LIVE_WITHIN
from aiotasks.worker.process.supervisor import START_AGAIN

from ..worker.harness import Ledger, Start, wait_until
from ..worker.test_sd_notify import Manager
from .files import DEPLOY, unit, worker_commands


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze isn't installed")
def test_systemd_reads_it_without_a_remark(tmp_path: Path) -> None:
    home = tmp_path / "shop"
    (home / "venv/bin").mkdir(parents=True)
    os.symlink(sys.executable, home / "venv/bin/python")
    text = (DEPLOY / "aiotasks.service").read_text("utf-8").replace("/srv/shop", os.fspath(home))
    copy = tmp_path / "aiotasks.service"
    copy.write_text(text)

    def remarks() -> list[str]:
        run = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True, check=False
        )
        return [line for line in run.stderr.splitlines() if "aiotasks.service" in line]

    assert remarks() == []
    copy.write_text(text.replace("KillMode=", "KilMode="))
    assert any("KilMode" in line for line in remarks())


def test_the_worker_ends_itself_before_the_watchdog_does() -> None:
    """A blocked loop counts as live for LIVE_WITHIN; the worker's own end gives the other tasks back."""
    service = unit()["Service"]
    loop_timeout = Options().loop_timeout
    assert loop_timeout is not None
    assert LIVE_WITHIN + float(service["WatchdogSec"]) > loop_timeout


def test_systemd_gets_to_know_when_it_is_ready_and_stops(
    start: Start, ledger: Ledger, tmp_path: Path
) -> None:
    address = os.fspath(tmp_path / "notify")
    manager = Manager(address)
    service = unit()["Service"]
    micros = str(int(service["WatchdogSec"]) * 1_000_000)
    worker = start(
        *worker_commands()["aiotasks.service"].here(),
        env={"NOTIFY_SOCKET": address, "WATCHDOG_USEC": micros},
    )
    for line in ("READY=1", "STATUS=2 of 2 processes ready", "WATCHDOG=1"):
        wait_until(lambda line=line: manager.has(line))
    assert worker.stop() == 0
    assert manager.has("STOPPING=1")
    manager.close()


def test_what_asks_for_a_restart_is_no_failure() -> None:
    service = unit()["Service"]
    assert service["Restart"] == "always"
    assert service["SuccessExitStatus"] == str(START_AGAIN)
    assert service["Type"] == "notify"
    assert service["KillMode"] == "mixed"
