"""The workloads: what each measures, how much of it, and what aiotasks is to reach."""

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["DJANGO_RIVALS", "WORKLOADS", "Ideal", "Target", "Workload"]

# Those that are backends of django.tasks on PostgreSQL.
DJANGO_RIVALS = ("django_tasks_db", "django_ox", "dj_queue")


@dataclass(frozen=True)
class Target:
    """``figure`` of aiotasks is to be ``at`` least or most ``bound`` times that of ``of``.

    Of several, the best that was measured counts. With none, ``bound`` is the figure itself.
    """

    figure: str
    at: Literal["least", "most"]
    bound: float
    of: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ideal:
    """What the tasks' own waiting takes: ``seconds`` each, in so many ``slots``."""

    seconds: float
    slots: int

    def of(self, count: int) -> float:
        return math.ceil(count / self.slots) * self.seconds


@dataclass(frozen=True)
class Workload:
    """``figure`` is the one to show, in ``unit``. ``count`` are tasks (of "snapshot": seconds), ``quick``
    as few as show that it runs. ``baseline`` names the workload of aiotasks that this one is compared
    with; ``ideal``, where given, is measured by everybody's side as a contender of that name.
    """

    measures: str
    figure: str
    unit: str
    count: int
    quick: int
    targets: tuple[Target, ...] = ()
    baseline: str | None = None
    ideal: Ideal | None = None


def _rate(
    measures: str, count: int, *targets: Target, quick: int = 200, baseline: str | None = None
) -> Workload:
    return Workload(measures, "per_s", "tasks/s", count, quick, targets, baseline)


def _at_least(bound: float, *of: str) -> Target:
    return Target("per_s", "least", bound, of)


def _share_of_ideal(measures: str, count: int, quick: int, ideal: Ideal, bound: float) -> Workload:
    return Workload(
        measures, "seconds", "s", count, quick, (Target("seconds", "most", bound, ("ideal",)),), ideal=ideal
    )


def _wait(measures: str, count: int, *targets: Target, baseline: str | None = None) -> Workload:
    return Workload(measures, "p50_ms", "ms", count, 20, targets, baseline)


def _limited(of: str, count: int, bound: float, baseline: str, compared: str = "") -> Workload:
    measures = f"the drain of no-ops {of}; without limits{f', {compared},' if compared else ''} in comparison"
    return _rate(measures, count, _at_least(bound, baseline), baseline=baseline)


WORKLOADS: dict[str, Workload] = {
    "drain": _rate(
        "no-op coroutines enqueued before, by one worker process, from the first start to the last finish",
        20_000,
        _at_least(0.65, "floor"),
        _at_least(1.0, "pgqueuer"),
        _at_least(0.95, "graphile_worker"),  # level with it, but for the noise
    ),
    "drain-receivers": _rate(
        "the drain with a sync receiver of task_finished, and django.tasks at INFO into a file",
        20_000,
        _at_least(3_000),
    ),
    "drain-sync": _rate("the drain of sync no-ops, in threads", 10_000, _at_least(5, *DJANGO_RIVALS)),
    "drain-cpu": _rate("the drain of tasks of 1 ms of CPU time", 5_000),
    "drain-queries": _rate("the drain of tasks of five ORM look-ups by primary key, 50 at a time", 2_000),
    "enqueue-50": _rate(
        "enqueues by 50 concurrent coroutines",
        20_000,
        _at_least(3, "floor"),
        _at_least(8, *DJANGO_RIVALS),
    ),
    "enqueue-1": _rate("enqueues by one coroutine, one after another", 5_000, _at_least(0.85, "floor")),
    "enqueue-sync": _rate(
        "sync enqueues, one after another, that notify workers",
        5_000,
        _at_least(0.6, "floor"),
        _at_least(1.0, *DJANGO_RIVALS),
    ),
    "bulk": _rate("tasks enqueued by one call", 20_000, _at_least(0.5, "floor")),
    "refresh": _rate("results of finished tasks, all refreshed at once", 5_000, _at_least(2, "floor")),
    "latency": _wait(
        "from just before the enqueue to the body at an idle worker, one task every 20 ms",
        500,
        Target("p50_ms", "most", 1.4, ("floor",)),
        Target("p99_ms", "most", 5, ("floor",)),
    ),
    "scheduled": _wait(
        "from the due time to the body at an idle worker, tasks with a run_after 300 ms ahead",
        200,
        Target("p99_ms", "most", 50),
    ),
    "io-200": _share_of_ideal("tasks of sleep(0.1), 200 at a time", 2_000, 200, Ideal(0.1, 200), 1.05),
    "io-10000": _share_of_ideal("tasks of sleep(1), 10,000 at a time", 10_000, 200, Ideal(1.0, 10_000), 1.25),
    "threads": _share_of_ideal("tasks of time.sleep(0.02), in 20 threads", 2_000, 200, Ideal(0.02, 20), 1.05),
    "depth": _rate(
        "the drain beside 1,000,000 ready, scheduled and finished rows each; at an empty table in comparison",
        20_000,
        _at_least(0.9, "depth-empty"),
        baseline="depth-empty",
    ),
    "snapshot": Workload(
        "claims at 500 tasks/s while a snapshot is held open: p95 of the worst 10 s by that of the 10 before",
        "worst_ratio",
        "×",
        300,
        3,
        (Target("worst_ratio", "most", 5), Target("after_ratio", "most", 1.5)),
    ),
    "orm": _rate(
        "tasks of five ORM queries of 10 ms, on 8 threads; on one thread-sensitive thread in comparison",
        1_000,
        _at_least(7, "orm-one-thread"),
        quick=10,
        baseline="orm-one-thread",
    ),
    "sync-orm": _rate(
        "sync tasks of one ORM query at Django's CONN_MAX_AGE of 0; at one of 600 seconds in comparison",
        1_000,
        _at_least(0.9, "sync-orm-600"),
        baseline="sync-orm-600",
    ),
    "memory": Workload(
        "memory of an idle worker, and its growth over no-ops after the first tenth of them",
        "idle_mb",
        "MB",
        1_000_000,
        2_000,
        (Target("idle_mb", "most", 90), Target("growth_percent", "most", 5)),
    ),
    "processes": _rate(
        "the drain of tasks of 1 ms of CPU time by two processes; by one in comparison",
        5_000,
        _at_least(1.6, "processes-one"),
        baseline="processes-one",
    ),
    "fairness": _wait(
        "from the enqueue to the body of one task every 20 ms, during a flood in the worker's other queue",
        500,
        Target("p99_ms", "most", 50),
    ),
    "names-drain": _rate(
        "the drain of no-ops in 10,000 queues by a worker that serves any name; in one queue in comparison",
        20_000,
        _at_least(0.5, "names-drain-1"),
        baseline="names-drain-1",
    ),
    "names-trickle": _wait(
        "the latency in 10,000 queues with one task waiting in each, for another lane; in one in comparison",
        500,
        Target("p50_ms", "most", 3, ("names-trickle-1",)),
        baseline="names-trickle-1",
    ),
    "join": _wait(
        "from the commit of a task's end to its waiter; whole: from the enqueue, by the time to the body",
        500,
        Target("p50_ms", "most", 2, ("floor",)),
        Target("whole_ratio", "most", 1.5),
    ),
    "join-10000": _rate(
        "the drain of no-ops of which each has a waiter, in one process; without waiters in comparison",
        10_000,
        _at_least(0.8, "join-none"),
        baseline="join-none",
    ),
    # The shares are those that a prototype of the statements has reached.
    "limits-1": _limited("of one key with one place", 3_000, 0.52, "limits-1-plain", "in one slot"),
    "limits-10": _limited("of one key with 10 places", 10_000, 0.47, "limits-10-plain", "in 10 slots"),
    "limits-100": _limited("of one key with 100 places", 20_000, 0.62, "limits-100-plain", "in 100 slots"),
    "limits-keys": _limited("of 1,000 keys with one place each", 20_000, 0.58, "limits-keys-plain"),
    "limits-fair": _limited("of 1,000 keys that take turns", 20_000, 0.63, "limits-fair-plain"),
    "limits-latency": _wait(
        "from a task's end to the next one's body, of a key with one place; the latency in comparison",
        200,
        Target("p50_ms", "most", 3, ("limits-latency-plain",)),
        baseline="limits-latency-plain",
    ),
    "limits-tenant": _wait(
        "the waits of a small tenant behind a large one, which take turns; without limits in comparison",
        250,
        Target("p99_ms", "most", 500),
        baseline="limits-tenant-plain",
    ),
}
