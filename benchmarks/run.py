"""Measurements in rounds: everybody once a round, each on a fresh copy of its own database."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psycopg
from psycopg import sql

from aiotasks.demo.postgres import PostgresServer

from .workloads import Workload

__all__ = ["SERVER_SETTINGS", "Databases", "Entry", "Failed", "Measurements", "measure"]

# Everything else is PostgreSQL's default, fsync and synchronous_commit too. Some rivals open a
# connection per thread or coroutine.
SERVER_SETTINGS = {"max_connections": "300"}

# Seconds for one measurement, or for one preparation.
TIMEOUT = 3600.0


class Failed(Exception):
    """A measurement, or its preparation, that has failed; what it said."""


@dataclass(frozen=True)
class Entry:
    """One contender's side of a workload: ``label`` in the results, and what it is asked to run."""

    label: str
    contender: str
    workload: str
    count: int
    staged: bool = False


@dataclass
class Measurements:
    """The figures of every round by label, and why those are missing that have failed."""

    rounds: list[dict[str, dict[str, float]]]
    failed: dict[str, str]


def measure(
    workload: Workload,
    entries: Sequence[Entry],
    databases: "Databases",
    *,
    pairs: int,
    say: Callable[[str], None],
) -> Measurements:
    """Run ``pairs`` rounds, in another order each time. Who fails once is out."""
    found = Measurements([{} for _ in range(pairs)], {})
    for number, figures in enumerate(found.rounds):
        turn = number % len(entries)
        for entry in [*entries[turn:], *entries[:turn]]:
            if entry.label in found.failed:
                continue
            try:
                figures[entry.label] = databases.measure(entry)
            except Failed as error:
                found.failed[entry.label] = str(error)
                say(f"{entry.label} has failed: {error}")
            else:
                shown = figures[entry.label][workload.figure]
                say(f"round {number + 1}: {entry.label} {shown:,.6g} {workload.unit}")
        if workload.ideal is not None:
            figures["ideal"] = {workload.figure: workload.ideal.of(entries[0].count)}
    for figures in found.rounds:
        for label in found.failed:
            figures.pop(label, None)
    return found


class Databases:
    """A template for each contender, and for each workload that finds rows there; copies to measure on."""

    def __init__(self, server: PostgresServer) -> None:
        self._server = server
        self._templates: dict[tuple[str, ...], str] = {}

    def measure(self, entry: Entry) -> dict[str, float]:
        """Measure on a fresh copy. Raises Failed."""
        with self._copy("measured", self._template(entry)) as name:
            output = self._run(name, entry.contender, entry.workload, str(entry.count))
        try:
            measured: dict[str, float] = json.loads(output.splitlines()[-1])
            return measured
        except (IndexError, ValueError):
            raise Failed("There was no JSON in the last line of its output.") from None

    def server_settings(self) -> dict[str, str]:
        """Return what the server itself says of what the figures depend on."""
        names = ["server_version", "fsync", "synchronous_commit", "full_page_writes", *SERVER_SETTINGS]
        with psycopg.connect(self._server.dsn()) as connection:
            rows = connection.execute("SELECT name, setting FROM pg_settings WHERE name = ANY(%s)", [names])
            return dict(rows.fetchall())

    def _template(self, entry: Entry) -> str:
        key = (entry.contender,)
        if key not in self._templates:
            name = f"prepared_{entry.contender}"
            self._execute("CREATE DATABASE {}", name)
            self._prepare(key, name, entry.contender, "prepare")
        if not entry.staged:
            return self._templates[key]
        staged = (entry.contender, entry.workload)
        if staged not in self._templates:
            name = f"prepared_{entry.contender}_{entry.workload}"
            self._execute("CREATE DATABASE {} TEMPLATE {}", name, self._templates[key])
            self._prepare(staged, name, entry.contender, "prepare", entry.workload, str(entry.count))
        return self._templates[staged]

    def _prepare(self, key: tuple[str, ...], name: str, *arguments: str) -> None:
        try:
            self._run(name, *arguments)
        except Failed:
            self._drop(name)
            raise
        self._execute("ALTER DATABASE {} ALLOW_CONNECTIONS false", name)  # nor autovacuum's
        self._templates[key] = name

    @contextmanager
    def _copy(self, name: str, template: str) -> Iterator[str]:
        # By files, so that a large copy doesn't go through the WAL.
        self._execute("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy", name, template)
        try:
            self._execute("CHECKPOINT")  # the next is due when this one is five minutes ago
            yield name
        finally:
            self._drop(name)

    def _drop(self, name: str) -> None:
        self._execute("DROP DATABASE {} (FORCE)", name)

    def _execute(self, statement: str, *names: str) -> None:
        with psycopg.connect(self._server.dsn(), autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    def _run(self, database: str, *arguments: str) -> str:
        """Run ``python -m benchmarks.contenders`` with ``arguments``; returns what it printed."""
        env = {
            key: value for key, value in os.environ.items() if not key.startswith(("AIOTASKS_", "DJANGO_"))
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.contenders", *arguments],
            env={**env, "AIOTASKS_BENCH_DSN": self._server.dsn(database)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # to end the workers together with it
        )
        try:
            output, errors = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            raise Failed(f"It was not through after {TIMEOUT:.0f} s.") from None
        finally:
            _end_session(process)
        if process.returncode != 0:
            said = errors.strip().splitlines()[-1:] or [f"It has ended with code {process.returncode}."]
            raise Failed(*said)
        return output


def _end_session(process: "subprocess.Popen[str]") -> None:
    """End whatever is left of a measurement that has failed, or was broken off."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
