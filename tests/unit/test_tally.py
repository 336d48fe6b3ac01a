"""Tally: what a worker's events are counted to, and how few series they make."""

import time
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from aiotasks.exceptions import TaskCancelled
from aiotasks.metrics import SECONDS, Family, Histogram
from aiotasks.worker.events import Events
from aiotasks.worker.figures import Figures
from aiotasks.worker.maintenance.ticker import LONGEST_RETRY
from aiotasks.worker.outcomes import Failed, Retried, Succeeded
from aiotasks.worker.tally import MOST_PAIRS, Tally

# The names are public: dashboards and alerts of sites have them. Those of a worker are below.
NAMES = {
    "aiotasks_tasks_started_total",
    "aiotasks_tasks_finished_total",
    "aiotasks_tasks_retried_total",
    "aiotasks_task_duration_seconds",
    "aiotasks_task_wait_seconds",
    "aiotasks_claims_total",
    "aiotasks_claim_size",
    "aiotasks_claim_seconds",
    "aiotasks_write_size",
    "aiotasks_write_seconds",
    "aiotasks_results_fenced_total",
    "aiotasks_rescues_total",
    "aiotasks_released_total",
    "aiotasks_lease_lost_total",
    "aiotasks_outages_total",
    "aiotasks_reconnects_total",
    "aiotasks_schedules_failing",
}
NAMES_OF_A_WORKER = {
    "aiotasks_worker_info",
    "aiotasks_worker_slots",
    "aiotasks_worker_slots_used",
    "aiotasks_worker_lease_seconds",
    "aiotasks_worker_loop_lag_seconds",
    "aiotasks_worker_orm_threads",
    "aiotasks_worker_stuck_threads",
    "aiotasks_worker_stalled_seconds",
}
OUTCOMES: dict[str, Any] = {
    "succeeded": Succeeded(1, "1"),
    "failed": Failed(ValueError("no"), "{}"),
    "cancelled": Failed(TaskCancelled("no"), "{}"),
}


def moment(seconds: float) -> bytes:
    return round(seconds * 1e6).to_bytes(8, signed=True)


def execution(
    path: str = "shop.charge",
    queue: str = "default",
    *,
    outcome: str = "succeeded",
    took: float | None = 0.3,
    waited: float | None = 0.02,
) -> Any:
    ready = None if waited is None else moment(10 - waited)
    job = SimpleNamespace(task_path=path, queue_name=queue, ready_at=ready, last_attempted_at=moment(10))
    return SimpleNamespace(job=job, outcome=OUTCOMES[outcome], seconds=took)


def values(families: list[Family], name: str) -> dict[tuple[str, ...], float]:
    """The samples of this name, by the values of their labels."""
    return {
        tuple(one.labels.values()): one.value
        for family in families
        for one in family.samples
        if one.name == name
    }


def test_tasks_are_counted_by_path_queue_and_outcome() -> None:
    tally = Tally()
    events = Events(tally)
    events.wrote([execution(), execution(outcome="failed"), execution("shop.other"), execution()], 0.5)
    events.wrote([execution(queue="mail", outcome="cancelled", took=None, waited=None)], 0.5)
    failure = Retried(1.0, OUTCOMES["failed"], 1, 3)
    events.retried(execution().job, failure, 2.0)
    events.lost(execution().job, '{"class": "aiotasks.exceptions.WorkerLost", "traceback": ""}')
    families = tally.families(running=2)
    assert values(families, "aiotasks_tasks_finished_total") == {
        ("shop.charge", "default", "succeeded"): 2,
        ("shop.charge", "default", "failed"): 1,
        ("shop.charge", "default", "lost"): 1,
        ("shop.charge", "mail", "cancelled"): 1,
        ("shop.other", "default", "succeeded"): 1,
    }
    assert values(families, "aiotasks_tasks_retried_total") == {("shop.charge", "default"): 1}
    assert values(families, "aiotasks_tasks_started_total") == {(): 5 + 2}
    assert values(families, "aiotasks_task_duration_seconds_count") == {
        ("shop.charge", "default"): 4,
        ("shop.other", "default"): 1,
    }
    sums = values(families, "aiotasks_task_duration_seconds_sum")
    assert sums["shop.charge", "default"] == pytest.approx(2.9)
    waits = values(families, "aiotasks_task_wait_seconds_bucket")
    assert [waits["shop.charge", "default", le] for le in ("0.01", "0.05", "+Inf")] == [0, 4, 4]
    assert values(families, "aiotasks_task_wait_seconds_sum")["shop.other", "default"] == pytest.approx(0.02)
    assert values(families, "aiotasks_write_size_bucket")["5",] == 2
    assert values(families, "aiotasks_write_seconds_sum") == {(): 1.0}


def test_a_worker_has_few_series_however_many_queues_there_are() -> None:
    tally = Tally()
    tally.wrote([execution(queue=f"customer {n}") for n in range(MOST_PAIRS + 50)], 0.1)
    tally.wrote([execution(queue=f"customer {MOST_PAIRS + 7}", outcome="failed")], 0.1)
    finished = values(tally.families(0), "aiotasks_tasks_finished_total")
    assert len(finished) == MOST_PAIRS + 2
    assert finished["other", "other", "succeeded"] == 50
    assert finished["other", "other", "failed"] == 1


def test_attempts_that_are_given_back_let_no_counter_fall() -> None:
    tally = Tally()
    name = "aiotasks_tasks_started_total"
    shown = [values(tally.families(running), name)[()] for running in (5, 0, 3)]
    tally.wrote([execution() for _ in range(8)], 0.1)
    shown.append(values(tally.families(0), name)[()])
    assert shown == [5, 5, 5, 8]


def test_a_value_on_a_bound_is_in_its_bucket() -> None:
    histogram = Histogram(SECONDS)
    for value in (0.0, 0.005, 0.0051, 3600.0, 3600.1):
        histogram.add(value)
    found = {one.labels["le"]: one.value for one in histogram.samples("x", {})[: len(SECONDS) + 1]}
    assert (found["0.005"], found["0.01"], found["3600"], found["+Inf"]) == (2, 3, 4, 5)
    assert list(found) == [*(f"{bound:g}" for bound in SECONDS), "+Inf"]


def test_the_rest_is_counted_too() -> None:
    tally = Tally()
    job = execution().job
    tally.claimed(0, 0.01)
    tally.claimed(7, 0.01)
    tally.fenced(job, OUTCOMES["failed"])
    tally.rescued(job)
    tally.released(3, "given back")
    tally.lease_lost(uuid4(), 1, "expired")
    tally.outage_began("claims", OSError())
    tally.reconnected("listener")
    for name in ("a", "b"):
        tally.schedule_failed(name, "no", 1)
    tally.schedule_recovered("a")
    families = tally.families(0)
    totals = {name: values(families, f"aiotasks_{name}_total") for name in ("claims", "released", "rescues")}
    assert totals == {"claims": {(): 2}, "released": {(): 3}, "rescues": {(): 1}}
    assert values(families, "aiotasks_results_fenced_total") == {(): 1}
    assert values(families, "aiotasks_lease_lost_total") == {(): 1}
    assert values(families, "aiotasks_outages_total") == {("claims",): 1}
    assert values(families, "aiotasks_reconnects_total") == {("listener",): 1}
    assert values(families, "aiotasks_schedules_failing") == {(): 1}
    assert values(families, "aiotasks_claim_size_bucket")["0",] == 1


def test_a_schedule_that_another_worker_enqueues_does_not_fail_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tally = Tally()
    name = "aiotasks_schedules_failing"
    tally.schedule_failed("a", "no", 1)
    tally.schedule_failed("b", "no", 1)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + LONGEST_RETRY)
    tally.schedule_failed("b", "no", 2)
    assert values(tally.families(0), name) == {(): 2}
    monkeypatch.setattr(time, "monotonic", lambda: now + 2 * LONGEST_RETRY + 1)
    assert values(tally.families(0), name) == {(): 1}
    monkeypatch.setattr(time, "monotonic", lambda: now + 3 * LONGEST_RETRY + 1)
    assert values(tally.families(0), name) == {(): 0}


def test_the_names_stay() -> None:
    shown = {name_of(family) for family in Tally().families(0)}
    assert shown == NAMES
    assert {name_of(family) for family in figures().families()} == NAMES_OF_A_WORKER


def name_of(family: Family) -> str:
    return family.name + "_total" * (family.kind == "counter")


def figures(**changed: Any) -> Figures:
    usual: dict[str, Any] = {
        "worker_id": uuid4(),
        "lease": 25.0,
        "slots": {"loop": 100, "thread": 10},
        "used": {"loop": 3, "thread": 1},
        "running": {"shop.charge": 4},
        "ended": 12,
        "pending": 0,
        "orm_threads": (1, 4),
        "stuck_threads": 0,
        "lag": 0.01,
        "blocked": None,
        "outlasting": [],
        "rss": 1,
        "stalled": None,
        "draining": False,
    }
    return Figures(**{**usual, **changed})
