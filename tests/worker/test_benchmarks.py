"""The benchmarks run: what they measure is for people to look at."""

import os
import subprocess
import sys


def test_they_run() -> None:
    settings = ("DJANGO_SETTINGS_MODULE", "AIOTASKS_DB_")
    found = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks", "--quick", "--only", "aiotasks,floor"),
            *("drain", "enqueue-50", "latency"),
        ],
        env={name: value for name, value in os.environ.items() if not name.startswith(settings)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    for line in ("drain:", "enqueue-50:", "latency:"):
        assert f"\n{line}" in found.stdout
    assert found.stdout.count("floor") >= 3
