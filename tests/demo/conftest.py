"""The demo in processes of its own, on a few modules instead of the whole library."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT
from tests.web.browser import browser

__all__ = ["Start", "browser", "library", "read_until", "start"]

# Modules that say "# waits" are measured once there is a file `gate`.
PREPARE = """
import sys, time
from pathlib import Path
from aiotasks.demo import stdlib
library = Path(sys.argv.pop(1))
modules = {path.stem: path for path in sorted(library.glob("*.py"))}
measure = stdlib.measure
def measure_later(source):
    while b"# waits" in source and not (library / "gate").exists():
        time.sleep(0.02)
    return measure(source)
stdlib.sources = lambda: modules
stdlib.measure = measure_later
"""

DEMO = """
import runpy
runpy.run_module("aiotasks.demo", run_name="__main__", alter_sys=True)
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def library(tmp_path: Path) -> Path:
    for number in range(30):
        (tmp_path / f"plain{number}.py").write_text("import os\n" * number)
    (tmp_path / "page.py").write_text("PAGE = '<script>alert(1)</script>'\n")
    return tmp_path


@pytest.fixture
def start(library: Path) -> Iterator[Start]:
    """Start the demo as a shell would: in a process group of its own. It must leave nothing behind."""
    started = []
    # Not in tmp_path, which is closed to the user that PostgreSQL runs as.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)

        def start(*arguments: str, code: str = DEMO, **env: str) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-c", PREPARE + code, str(library), *arguments],
                env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": folder, "COLUMNS": "120", **env},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            started.append(process)
            return process

        yield start
        for process in started:
            if process.poll() is None:
                process.kill()
            process.communicate()
        left = [process.info["cmdline"] for process in psutil.process_iter(["cmdline"])]
        assert not [command for command in left if folder in " ".join(command or [])]
        assert not os.listdir(folder)


def read_until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return line
    pytest.fail(f"The demo has ended without saying {text!r}")
