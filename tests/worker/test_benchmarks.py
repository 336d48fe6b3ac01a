"""The benchmarks run: what they measure is for people to look at."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    settings = ("DJANGO_SETTINGS_MODULE", "AIOTASKS_DB_")
    found = subprocess.run(
        [sys.executable, "-m", module, "--quick", *arguments],
        env={name: value for name, value in os.environ.items() if not name.startswith(settings)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found


def test_they_run() -> None:
    found = run("benchmarks", "--only", "aiotasks,floor", "drain", "enqueue-50", "latency")
    for line in ("drain:", "enqueue-50:", "latency:"):
        assert f"\n{line}" in found.stdout
    assert found.stdout.count("floor") >= 3


def test_the_sustained_load_runs(tmp_path: Path) -> None:
    found = run("benchmarks.sustained", "--output", os.fspath(tmp_path))
    assert "\nfinished/s " in found.stdout
    curves = json.loads((tmp_path / "sustained.json").read_text())["curves"]
    assert sum(curves["finished_per_s"]) > 0
    for statement in ("insert_jobs", "claim_jobs", "finish_jobs"):
        assert any(curves["statements_ms"][statement])
    ElementTree.parse(tmp_path / "sustained.svg")


def test_a_fleet_is_measured() -> None:
    found = run("benchmarks.fleet", "trickle", "drain")
    _, trickle, drain, rows = found.stdout.split("\n\n")
    columns, _, row = (re.findall(r"[^|]+", line) for line in trickle.splitlines()[:3])
    figures = dict(zip(columns, row, strict=True))
    for name in ("claims/task", "NOTIFYs/task", "finishes/task", "inserts/task"):
        assert float(figures[f" {name} "]) > 0, name  # so the statements were told apart
    assert "400 no-ops" in drain
    assert rows.count("\n| 2 | 4 |") == 1


def test_streams_are_measured() -> None:
    found = run("benchmarks.streams")
    for line in ("age {", "drain, to clients {", "drain, ratios {", "stop {"):
        assert line in found.stdout
