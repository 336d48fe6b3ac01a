"""The run of tasks with limits by key, whose workers are killed."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from random import Random
from uuid import UUID

from tests.worker import limited_work as bodies
from tests.worker.harness import Condition, Process

from .arena import TIMEOUT, Arena, Recoveries
from .report import Report

__all__ = ["limited"]

LEASE = 2.0
SWEEP = LEASE / 6

# Keys of each limit. So many tasks wait that each key has some at nearly every kill.
KEYS = 8

# What takes up a place, whoever runs it: a row of a dead worker does until its rescue.
_PLACES = f"CASE WHEN limit_key LIKE 'battery.line:%%' THEN 1 ELSE {bodies.PLACES} END"
_TOO_MANY = f"""
    SELECT limit_key FROM aiotasks_task WHERE status = 'RUNNING' AND limit_key IS NOT NULL
    GROUP BY limit_key HAVING count(*) > {_PLACES}
"""

# Of each key, whether these workers have all of its places.
_HELD = f"""
    SELECT limit_key, count(*) = {_PLACES} AS has_all FROM aiotasks_task
    WHERE status = 'RUNNING' AND worker_id = ANY(%s) GROUP BY limit_key
"""


@dataclass(frozen=True)
class _Kill:
    """When a worker was killed, by the ledger's clock; its process; and for each key of which it had places,
    whether it had all."""

    at: datetime
    pid: int
    keys: Mapping[str, bool]


def limited(arena: Arena, rng: Random, report: Report, *, tasks: int, kills: int) -> None:
    """kill -9 at random moments, of workers that have places of keys; three workers, each replaced at once.

    The limit is judged twice: by the rows that are RUNNING, at every look, and by the runs in the ledger, of
    which one whose worker was killed ended then.
    """
    report.load = (
        f"{tasks} tasks of {KEYS} keys of {bodies.PLACES} places and {KEYS} lines in order, 3 workers, "
        f"{kills} kills, lease {LEASE:g} s"
    )
    options = {"LEASE_TIMEOUT": LEASE, "POLL_INTERVAL": 1, "MAX_CRASHES": 1000}
    arguments = ("--concurrency", "20", "--threads", "5")
    workers = arena.fleet(3, *arguments, options=options)
    keys = _enqueue(arena, rng, tasks)
    recoveries = Recoveries(arena)
    looks = over = 0
    done: list[_Kill] = []

    def watch(condition: Condition[bool], timeout: float = TIMEOUT) -> bool:
        """Look at the limits until ``condition`` is true; False if that takes too long."""

        def look() -> bool:
            nonlocal looks, over
            looks += 1
            over += len(arena.database.rows(_TOO_MANY))
            return condition()

        return recoveries.watch(look, timeout)

    busy: list[Process] = []

    def some_are_busy() -> bool:
        """Whether workers have tasks, of which there are always some."""
        if len(keys) - arena.finished() < 10 * KEYS:
            keys.update(_enqueue(arena, rng, 20 * KEYS))
        busy[:] = [worker for worker in workers if arena.running(arena.worker_ids(worker)) > 0]
        return bool(busy)

    for point in sorted(rng.sample(range(tasks * 8 // 10), kills)):
        reached = watch(lambda point=point: arena.finished() >= point)
        # So that there is always somebody to recover what is lost.
        watch(lambda: all("connections: at most" in worker.log for worker in workers))
        if not reached:
            break  # what is missing is counted as lost
        watch(some_are_busy)
        victim = rng.choice(busy)
        done.append(_kill(arena, recoveries, victim))
        workers[workers.index(victim)] = arena.start(*arguments, options=options)
    watch(lambda: arena.finished() >= len(keys) and recoveries.all_over(), timeout=2 * TIMEOUT)
    judged = arena.judge(list(keys))
    runs = _runs(arena, keys, done)
    most = _most_at_once(runs)
    disorder = _disorder(runs, list(keys))
    free_after = _free_after(runs, done)
    bound = LEASE + SWEEP + 1
    report.figure(
        tasks=len(keys),
        lost=judged.lost,
        overwrites=judged.overwrites,
        repeats=judged.repeats,
        crashes_counted=judged.crashes,
        kills_that_hit=sum(bool(one.keys) for one in done),
        looks=looks,
        above_the_limit=over,
        most_runs_of_a_key=max((number for key, number in most.items() if ".places:" in key), default=0),
        most_runs_of_a_line=max((number for key, number in most.items() if ".line:" in key), default=0),
        out_of_order=disorder,
        recovered_within_s=recoveries.longest,
        keys_that_were_taken=len(free_after),
        free_within_s=max(free_after, default=0.0),
        limit_s=bound,
    )
    report.expect(judged.lost == 0, f"{judged.lost} lost")
    report.expect(judged.overwrites == 0, f"{judged.overwrites} overwrites")
    report.expect(len(done) == kills, f"{len(done)} of {kills} kills")
    report.expect(sum(bool(one.keys) for one in done) >= 0.8 * kills, "too few kills hit something")
    report.expect(over == 0, f"{over} keys with more RUNNING rows than their limit")
    wrong = [key for key, number in most.items() if number > (1 if ".line:" in key else bodies.PLACES)]
    report.expect(not wrong, f"more runs at once than the limit: {wrong[:3]}")
    report.expect(disorder == 0, f"{disorder} starts out of order")
    report.expect(judged.repeats <= judged.crashes, f"{judged.repeats} repeats of {judged.crashes} crashes")
    report.expect(
        recoveries.all_over() and recoveries.longest <= bound, f"recovered after {recoveries.longest:.2f} s"
    )
    report.expect(bool(free_after), "no killed worker had all places of a key")
    late = [seconds for seconds in free_after if seconds > bound]
    report.expect(not late, f"keys were free again only after {late[:3]} s")


def _enqueue(arena: Arena, rng: Random, count: int) -> dict[str, str]:
    """Enqueue tasks of all keys; returns their stored keys by their ids, in the order of each line."""
    calls: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for _ in range(count):
        kind = rng.choices(["places", "places_sync", "line"], [5, 1, 2])[0]
        calls[kind].append((f"k{rng.randrange(KEYS)}", round(rng.uniform(0.0, 0.1), 3)))
    keys: dict[str, str] = {}
    for kind, name in (("places", "places"), ("places_sync", "places"), ("line", "line")):
        ids = arena.enqueue(getattr(bodies, f"work_in_{kind}"), calls[kind])
        keys |= {id: f"battery.{name}:{key}" for id, (key, _) in zip(ids, calls[kind], strict=True)}
    return keys


def _kill(arena: Arena, recoveries: Recoveries, victim: Process) -> _Kill:
    mine = arena.worker_ids(victim)
    at = arena.ledger.value("SELECT clock_timestamp()")
    arena.kill(victim)
    recoveries.lost(mine)
    held = arena.database.rows(_HELD, list(mine))
    return _Kill(at, victim.pid, {row.limit_key: row.has_all for row in held})


@dataclass(frozen=True)
class _Run:
    """From ``start`` to ``end``; None: it hasn't come to its end, though its worker lives."""

    task_id: UUID
    key: str
    start: datetime
    end: datetime | None


def _runs(arena: Arena, keys: Mapping[str, str], kills: Iterable[_Kill]) -> list[_Run]:
    """The runs of the ledger, in the order of their starts. A killed one ended when its worker was killed."""
    killed = {kill.pid: kill.at for kill in kills}
    ends: dict[tuple[UUID, UUID], datetime] = {}
    starts = []
    for entry in arena.ledger.rows("SELECT * FROM ledger WHERE event IN ('start', 'end') ORDER BY number"):
        if entry.event == "end":
            ends[entry.task_id, entry.claim_id] = entry.at
        else:
            starts.append(entry)
    return [
        _Run(
            one.task_id,
            keys[str(one.task_id)],
            one.at,
            ends.get((one.task_id, one.claim_id), killed.get(one.pid)),
        )
        for one in sorted(starts, key=lambda entry: entry.at)
    ]


def _most_at_once(runs: Sequence[_Run]) -> dict[str, int]:
    """Of each key, how many of its runs there were at once at the most."""
    moments: dict[str, list[tuple[datetime, int]]] = defaultdict(list)
    for run in runs:
        moments[run.key].append((run.start, 1))
        if run.end is not None:
            moments[run.key].append((max(run.end, run.start), -1))
    most: dict[str, int] = {}
    for key, changes in moments.items():
        number = highest = 0
        for _, change in sorted(changes):  # an end before a start of the same moment
            number += change
            highest = max(highest, number)
        most[key] = highest
    return most


def _disorder(runs: Sequence[_Run], ids: Sequence[str]) -> int:
    """How many runs of a line began after a run of a later task of it."""
    place = {UUID(id): number for number, id in enumerate(ids)}
    last: dict[str, int] = {}
    found = 0
    for run in runs:
        if ".line:" in run.key:
            found += place[run.task_id] < last.get(run.key, -1)
            last[run.key] = max(last.get(run.key, -1), place[run.task_id])
    return found


def _free_after(runs: Sequence[_Run], kills: Sequence[_Kill]) -> list[float]:
    """For each key of which a killed worker had all places, the seconds to its next start;
    nothing, where another of its workers was killed before that.
    """
    found = []
    for number, kill in enumerate(kills):
        for key in (key for key, has_all in kill.keys.items() if has_all):
            start = next((run.start for run in runs if run.key == key and run.start > kill.at), None)
            others = (other for other in kills[number + 1 :] if key in other.keys)
            if start is not None and not any(other.at < start for other in others):
                found.append((start - kill.at).total_seconds())
    return found
