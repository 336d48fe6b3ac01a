"""A year of schedules: five processes tick on a clock that the run sets, and every tick is stored once.

``python -m tests.faults.year``: `nox -s schedules`. The database's clock is a row of a table, because in this
database `statement_timestamp()` is a function of the run. Before each step of the clock all ticks of the one
before are stored, so what is wanted is known for each; meanwhile connections are cut, sessions ended and
processes killed.
"""

import argparse
import asyncio
import bisect
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import django

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.worker.settings")
    django.setup()

import psycopg
from django.db import utils
from psycopg.rows import namedtuple_row

from aiotasks.conf import Options
from aiotasks.demo.postgres import PostgresServer
from aiotasks.rows import Missed, Overlap, Schedule
from aiotasks.schedules.cron import Times
from aiotasks.store.loop import close_pools, resources
from aiotasks.store.schedules import DeclaredSchedule
from aiotasks.store.store import Store
from aiotasks.store.wakeups import Wakeup
from aiotasks.sync import drive
from aiotasks.worker.maintenance.ticker import LOCKED_WAIT, Ticker
from tests.conftest import BIN_DIR
from tests.proxy import Proxy
from tests.store.rows import new_schedule

from .away import environment, migrate
from .tick_figures import Psycopg, measure

__all__ = ["Result", "run"]

BACKEND = "default"

# Found first by name, so the statements of this database take these for the server's own.
CLOCK = """
    CREATE SCHEMA simulated;
    CREATE TABLE simulated.clock (at timestamptz NOT NULL);
    INSERT INTO simulated.clock VALUES ('2026-01-01 00:00+00');
    CREATE FUNCTION simulated.statement_timestamp() RETURNS timestamptz STABLE LANGUAGE sql
        AS 'SELECT at FROM simulated.clock';
    CREATE FUNCTION simulated.clock_timestamp() RETURNS timestamptz VOLATILE LANGUAGE sql
        AS 'SELECT at FROM simulated.clock';
    ALTER DATABASE postgres SET search_path = simulated, public, pg_catalog;
"""

ZONES = ("Europe/Berlin", "America/New_York", "Africa/Cairo", "Australia/Lord_Howe")

# By zone an hour that a spring leaves out and an autumn has twice, and some that it hasn't.
EXPRESSIONS = ("30 2 * * *", "*/30 1-3 * * 0,5", "15 0 * * 5", "0 */6 * * *", "0 12 1 * *")

SKIP_WITHIN = timedelta(seconds=60)
ALL_WITHIN = timedelta(days=1)

# Seconds until all ticks of a step must be stored. It takes milliseconds, or COMMAND_TIMEOUT after a cut.
PATIENCE = 120.0


@dataclass
class Wanted:
    """What is to become of one schedule. ``ticks``: all of the time that is simulated."""

    schedule: Schedule
    ticks: list[datetime]
    following: int = 0  # the number of its next tick
    stored: list[datetime] = field(default_factory=list)
    skipped: int = 0
    is_busy: bool = False  # the task of an earlier tick is unfinished

    def advance(self, now: datetime) -> None:
        """Note what the ticks become that have come by ``now``."""
        end = max(self.following, bisect.bisect_right(self.ticks, now))  # it may have stepped back
        come = self.ticks[self.following : end]
        self.following = end
        if self.schedule.missed == "all":
            come = [tick for tick in come if tick >= now - ALL_WITHIN]
        else:
            come = come[-1:]
            if self.schedule.missed == "skip":
                come = [tick for tick in come if tick >= now - SKIP_WITHIN]
        for tick in come:
            if self.is_busy and self.schedule.overlap == "skip":
                self.skipped += 1
            else:
                self.stored.append(tick)
                self.is_busy = True


@dataclass
class Result:
    """The table of a run. ``differing``: the names of schedules of which something else was stored."""

    schedules: int = 0
    steps: int = 0
    outages: int = 0
    steps_back: int = 0
    set_back_by_hand: int = 0
    cuts: int = 0
    sessions_ended: int = 0
    processes_killed: int = 0
    lost_races: int = 0
    wanted: int = 0
    stored: int = 0
    skipped: int = 0
    doubles: int = 0
    differing: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def lines(self) -> list[str]:
        return [f"{name.replace('_', ' '):>18}: {value}" for name, value in vars(self).items()]


def schedules() -> list[Schedule]:
    """Each expression in each zone, over the three ways of missed ticks; some that leave ticks out."""
    ways: tuple[Missed, ...] = ("last", "skip", "all")
    found = []
    for place, zone in enumerate(ZONES):
        for number, expression in enumerate(EXPRESSIONS):
            missed = ways[(place + number) % 3]
            overlap: Overlap = "skip" if number == 3 else "allow"
            found.append(
                new_schedule(
                    f"{zone} {expression} {missed}",
                    expression=expression,
                    timezone=zone,
                    missed=missed,
                    overlap=overlap,
                )
            )
    every = new_schedule(
        "every 5 h", expression="@every 18000", timezone="UTC", overlap="allow", missed="all"
    )
    return [*found, every]


class Simulation:
    """Sets the clock, and knows what is wanted."""

    def __init__(self, server: PostgresServer, rng: random.Random, since: datetime, until: datetime) -> None:
        self.result = Result()
        self._server = server
        self._rng = rng
        self._until = until
        self._now = since
        self._sql: psycopg.Connection[Any] = psycopg.connect(
            server.dsn(), autocommit=True, row_factory=namedtuple_row
        )
        self._wanted = [Wanted(each, _ticks(each, since, until)) for each in schedules()]
        self.result.schedules = len(self._wanted)

    def close(self) -> None:
        self._sql.close()

    async def declare(self, store: Any) -> None:
        written = [
            DeclaredSchedule(each.schedule, None, each.ticks[0] if each.ticks else None)
            for each in self._wanted
        ]
        await store.declare_schedules(BACKEND, written, from_code=False)

    def run(self, fleet: "Fleet") -> None:
        """Let the time pass."""
        self._set_clock(self._now)
        while self._now < self._until:
            self._step()
            self._set_clock(self._now)
            for each in self._wanted:
                each.advance(self._now)
            fleet.disturb(self._rng, self._sql, self.result)
            self._wait_until_stored()
            self.result.steps += 1
            if self._rng.random() < 0.3:
                self._finish_tasks()
            if self._rng.random() < 0.01:
                self._set_back_by_hand()

    def judge(self) -> Result:
        """Compare what is stored with what is wanted."""
        rows = self._sql.execute(
            "SELECT metadata->>'_schedule' AS name, metadata->>'_scheduled_for' AS at FROM aiotasks_task"
        ).fetchall()
        stored: dict[str, Counter[datetime]] = {}
        for row in rows:
            stored.setdefault(row.name, Counter())[datetime.fromisoformat(row.at)] += 1
        skipped = dict(self._sql.execute("SELECT name, skipped FROM aiotasks_schedule").fetchall())
        result = self.result
        for each in self._wanted:
            name = each.schedule.name
            mine = stored.get(name, Counter())
            result.wanted += len(each.stored)
            result.stored += mine.total()
            result.doubles += mine.total() - len(mine)
            result.skipped += skipped[name]
            if mine != Counter(each.stored) or skipped[name] != each.skipped:
                result.differing.append(name)
        return result

    def _step(self) -> None:
        """Choose the next time: soon after the next tick mostly, or days later, or some hours back."""
        rng = self._rng
        chance = rng.random()
        if chance < 0.01:
            self.result.steps_back += 1
            self._now -= timedelta(hours=rng.uniform(0.0, 3.0))
            return
        following = min(
            (each.ticks[each.following] for each in self._wanted if each.following < len(each.ticks)),
            default=self._until,
        )
        self._now = max(self._now, following) + timedelta(seconds=rng.uniform(0.0, 2.0))
        if chance < 0.02:
            self.result.outages += 1
            self._now += timedelta(days=rng.uniform(0.0, 2.0))
        elif chance < 0.05:
            self._now += timedelta(seconds=rng.uniform(30.0, 120.0))  # late, for "skip"

    def _set_clock(self, now: datetime) -> None:
        self._sql.execute("UPDATE simulated.clock SET at = %s", [now])

    def _wait_until_stored(self) -> None:
        end = time.monotonic() + PATIENCE
        while True:
            (row,) = self._sql.execute(
                "SELECT count(*) AS due FROM aiotasks_schedule WHERE next_at <= %s", [self._now]
            ).fetchall()
            if not row.due:
                return
            if time.monotonic() > end:
                left = self._sql.execute(
                    "SELECT name, next_at, error FROM aiotasks_schedule WHERE next_at <= %s", [self._now]
                ).fetchall()
                raise AssertionError(f"At {self._now} not ticked within {PATIENCE} s: {left}")
            time.sleep(0.001)

    def _finish_tasks(self) -> None:
        self._sql.execute(
            "UPDATE aiotasks_task SET status = 'SUCCESSFUL', finished_at = %s WHERE status = 'READY'",
            [self._now],
        )
        for each in self._wanted:
            each.is_busy = False

    def _set_back_by_hand(self) -> None:
        """Have the last tick of a schedule come again, which was enqueued."""
        chosen = self._rng.choice([each for each in self._wanted if each.schedule.overlap == "allow"])
        if chosen.stored and chosen.stored[-1] == chosen.ticks[chosen.following - 1]:
            self.result.set_back_by_hand += 1
            self._sql.execute(
                "UPDATE aiotasks_schedule SET next_at = %s WHERE name = %s",
                [chosen.stored[-1], chosen.schedule.name],
            )
            self._wait_until_stored()


def _ticks(schedule: Schedule, since: datetime, until: datetime) -> list[datetime]:
    times = Times(schedule.expression, schedule.timezone)
    ticks = []
    tick = times.next_after(since)
    # Somewhat longer: an outage may end after the time is over.
    while tick is not None and tick < until + timedelta(days=3):
        ticks.append(tick)
        tick = times.next_after(tick)
    return ticks


class Fleet:
    """Processes that tick, each behind a proxy of its own."""

    def __init__(self, server: PostgresServer, number: int, logs: Path, unrest: float) -> None:
        self._server = server
        self._unrest = unrest
        self._logs = logs
        self._proxies = [Proxy(server.host, server.port) for _ in range(number)]
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Fleet":
        with ExitStack() as stack:
            for proxy in self._proxies:
                stack.enter_context(proxy)
            self._stack = stack.pop_all()
        self._processes = [self._start(number) for number in range(len(self._proxies))]
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self._stack.close()

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        port = str(self._proxies[number].port)
        with (self._logs / f"ticks{number}").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.faults.year", "--tick"],
                env={**os.environ, **environment(self._server), "AIOTASKS_DB_PORT": port},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def disturb(self, rng: random.Random, sql: Any, result: Result) -> None:
        """Break something, now and then, while the processes store ticks."""
        if rng.random() < 0.02 * self._unrest:
            time.sleep(rng.uniform(0.0, 0.01))  # load: anywhere in their statements
            rng.choice(self._proxies).cut()
            result.cuts += 1
        if rng.random() < 0.02 * self._unrest:
            time.sleep(rng.uniform(0.0, 0.01))  # as above
            result.sessions_ended += sql.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND application_name = 'aiotasks' "
                "ORDER BY random() LIMIT 1"
            ).rowcount
        if rng.random() < 0.003:
            number = rng.randrange(len(self._processes))
            self._processes[number].kill()
            self._processes[number].wait()
            self._processes[number] = self._start(number)
            result.processes_killed += 1

    def stop(self) -> int:
        """End the processes; returns how often they came too late for a schedule."""
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            process.wait(PATIENCE)
        races = 0
        for number in range(len(self._proxies)):
            for line in (self._logs / f"ticks{number}").read_text().splitlines():
                with suppress(ValueError, TypeError, KeyError):
                    races += json.loads(line)["lost_races"]
        return races


class _Deaf:
    """Nobody is woken here."""

    def wake(self, wakeups: Sequence[Wakeup], *, since: float | None = None) -> None:
        pass

    def wake_self(self) -> None:
        pass


async def tick() -> None:
    """Tick until SIGTERM, as often as the database allows."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    options = Options(command_timeout=2.0)
    ticker = Ticker(resources(options).driver, backend=BACKEND, options=options, waker=_Deaf())
    lost_races = 0
    while not stopping.is_set():
        try:
            lost_races += await ticker.run_once() == LOCKED_WAIT
        except utils.Error:
            await asyncio.sleep(0.02)
        await asyncio.sleep(random.uniform(0.0, 0.01))
    print(json.dumps({"lost_races": lost_races}), flush=True)
    await close_pools()


def run(since: datetime, until: datetime, *, processes: int, seed: int, unrest: float = 1.0) -> Result:
    """Simulate the time from ``since`` to ``until`` on a server of its own.

    unrest: how many times as often as usual connections break.
    """
    began = time.monotonic()
    settings = {"fsync": "off", "full_page_writes": "off"}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(PostgresServer(bin_dir=BIN_DIR, settings=settings))
        migrate(server)
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute(CLOCK)
            connection.execute("UPDATE simulated.clock SET at = %s", [since])
        simulation = Simulation(server, random.Random(seed), since, until)
        stack.callback(simulation.close)
        _declare(server, simulation)
        fleet = stack.enter_context(Fleet(server, processes, folder, unrest))
        simulation.run(fleet)
        simulation.result.lost_races = fleet.stop()
        result = simulation.judge()
    result.seconds = round(time.monotonic() - began, 1)
    return result


def _declare(server: PostgresServer, simulation: Simulation) -> None:
    """In this process, over psycopg."""
    drive(simulation.declare(Store(Psycopg(server))))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.year", description=__doc__)
    parser.add_argument("--days", type=int, default=365, help="how many from the first of January 2026 on")
    parser.add_argument("--seed", type=int, default=1, help="which random moments (default: 1)")
    parser.add_argument("--figures", action="store_true", help="only measure")
    parser.add_argument("--tick", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tick:
        asyncio.run(tick())
        return 0
    if options.figures:
        print("\n".join(measure()))
        return 0
    since = datetime(2026, 1, 1, tzinfo=UTC)
    result = run(since, since + timedelta(days=options.days), processes=5, seed=options.seed)
    print("\n".join(result.lines()))
    if options.days == 365:
        print("\n".join(measure()))
    return 1 if result.differing or result.doubles or result.wanted != result.stored else 0


if __name__ == "__main__":
    sys.exit(main())
