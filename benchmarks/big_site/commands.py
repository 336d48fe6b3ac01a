"""What operators' commands cost on the big site: wall time, the server's time, and blocks read.

``python -m benchmarks.big_site --keep`` prints the environment that this needs; then
``python -m benchmarks.big_site.commands [--runs N]``. Each command runs at a terminal and with --json.
"""

import argparse
import os
import pty
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import psycopg

__all__: list[str] = []

COMMANDS = [
    ["status"],
    ["tasks"],
    ["tasks", "--status", "ready"],
    ["tasks", "--status", "failed"],
    ["tasks", "--status", "scheduled"],
    ["tasks", "--status", "failed", "--task", "benchmarks.big_site.shop.ship"],
    ["tasks", "--error", "TimeoutError"],
    ["tasks", "--queue", "mail"],
    ["tasks", "--since", "1h"],
    ["show", "{failed}"],
    ["running"],
]

# What the server has done for aiotasks' tables since the reset.
_USED = """
    SELECT coalesce(sum(total_exec_time), 0)::float8,
        coalesce(sum(shared_blks_hit + shared_blks_read), 0)::bigint
    FROM pg_stat_statements WHERE query ~ 'aiotasks_'
"""


@dataclass
class Cost:
    """Of one run: seconds by the clock, milliseconds and blocks of the server, and lines printed."""

    seconds: float
    ms: float
    blocks: int
    lines: int


def main() -> int:
    """Do what the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.big_site.commands", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="of each command (5)")
    options = parser.parse_args()
    with psycopg.connect(os.environ["AIOTASKS_BENCH_DSN"], autocommit=True) as connection:
        ((failed,),) = connection.execute("SELECT id FROM aiotasks_task WHERE status = 'FAILED' LIMIT 1")
        print("| command | terminal s | JSON s | server ms | blocks | lines |")
        print("|---|---|---|---|---|---|")
        for command in COMMANDS:
            words = [word.format(failed=failed) for word in command]
            shown = [_run(connection, words) for _ in range(options.runs)]
            as_json = [_run(connection, [*words, "--json"]) for _ in range(options.runs)]
            print(
                f"| `{' '.join(command)}` | {statistics.median(one.seconds for one in shown):.2f} "
                f"| {statistics.median(one.seconds for one in as_json):.2f} "
                f"| {statistics.median(one.ms for one in shown):.1f} "
                f"| {statistics.median(one.blocks for one in shown):,.0f} | {shown[0].lines} |",
                flush=True,
            )
    return 0


def _run(connection: psycopg.Connection, words: list[str]) -> Cost:
    """Run a command at a terminal of its own; raises CalledProcessError where it fails."""
    connection.execute("SELECT pg_stat_statements_reset()")
    ours, theirs = pty.openpty()
    printed: list[bytes] = []
    reader = threading.Thread(target=_read, args=(ours, printed))
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "django", "aiotasks", *words], stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    reader.start()
    code = process.wait()
    seconds = time.monotonic() - began
    reader.join()
    os.close(ours)
    text = b"".join(printed)
    if code != 0:
        raise subprocess.CalledProcessError(code, words, text)
    ((ms, blocks),) = connection.execute(_USED)
    return Cost(seconds, ms, blocks, text.count(b"\n"))


def _read(terminal: int, printed: list[bytes]) -> None:
    """Read until the command has closed its side, which is an error on Linux."""
    try:
        while data := os.read(terminal, 65_536):
            printed.append(data)
    except OSError:
        pass


if __name__ == "__main__":
    sys.exit(main())
