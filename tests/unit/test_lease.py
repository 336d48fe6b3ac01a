"""Lease: two threads change it, each without undoing what the other did."""

from types import SimpleNamespace
from typing import Any
from uuid import uuid4

from aiotasks.worker.lease.lease import Lease, boottime


def test_it_lasts_from_before_the_registration_was_sent() -> None:
    lease, worker_id = Lease(60.0), uuid4()
    assert lease.current_id() is None
    assert not lease.holds(None)
    lease.registered(worker_id, boottime() - 50.0)
    assert 9 < lease.remaining() <= 10
    assert lease.holds(worker_id)
    job: Any = SimpleNamespace(worker_ids=["another", str(worker_id)])
    assert lease.owns(job)
    assert lease.should_remain() == 0.0  # less than two intervals
    assert lease.renewed(worker_id, boottime() - 61.0) is False
    assert lease.worker_id == worker_id
    assert lease.current_id() is None
    assert not lease.holds(worker_id)
    assert not lease.owns(job)


def test_a_renewal_after_its_end_is_void() -> None:
    lease, first, second = Lease(60.0), uuid4(), uuid4()
    lease.registered(first, boottime())
    assert lease.end(second) is None
    assert lease.end(first) == first
    assert lease.end() is None
    lease.registered(second, boottime())
    deadline = lease.deadline
    lease.unsteady()
    assert lease.renewed(first, boottime()) is False
    assert (lease.deadline, lease.steady_since) == (deadline, None)
    assert lease.end(first) is None
    assert lease.worker_id == second


def test_others_may_be_rescued_after_two_intervals_of_renewals() -> None:
    lease, worker_id = Lease(60.0), uuid4()
    lease.registered(worker_id, boottime())
    assert not lease.may_rescue()
    lease.steady_since = boottime() - 2 * lease.interval
    assert lease.may_rescue()
    lease.unsteady()
    assert not lease.may_rescue()
    assert lease.renewed(worker_id, boottime()) is True
    assert lease.renewed(worker_id, boottime()) is False
    assert not lease.may_rescue()


def test_the_deadline_only_moves_on() -> None:
    lease = Lease(60.0)
    lease.registered(uuid4(), boottime())
    deadline = lease.deadline
    lease.extend(deadline - 5.0)
    assert lease.deadline == deadline
    lease.extend(deadline + 5.0)
    assert lease.deadline == deadline + 5.0
