"""Events: who gets them, and what they cost where nobody asks for them."""

import inspect
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from aiotasks.worker.events import NULL, EventLog, Events, Observer

JOB: Any = SimpleNamespace(id=uuid4(), task_path="some.task", status="READY")


class Starts(Observer):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def started(self, job: Any) -> None:
        self.seen.append(job)


class Broken(Observer):
    def rescued(self, job: Any) -> None:
        raise ValueError("no")


def test_the_events_of_each_task_are_asked_for_by_overriding_them() -> None:
    events = Events(EventLog())
    assert not events.watches_tasks
    assert not NULL.watches_tasks
    starts = Starts()
    events.subscribe(starts)
    assert events.watches_tasks
    events.started(JOB)
    events.unsubscribe(starts)
    assert not events.watches_tasks
    events.started(JOB)
    assert starts.seen == [JOB]


def test_so_are_those_of_each_batch() -> None:
    class Batches(Observer):
        def wrote(self, executions: Any, seconds: float) -> None: ...

    class Claims(Observer):
        def claimed(self, number: int, seconds: float) -> None: ...

    events = Events(EventLog())
    assert (events.watches_batches, NULL.watches_batches) == (False, False)
    for observer in (Batches(), Claims()):
        assert (observer.watches_batches, observer.watches_tasks) == (True, False)
        events.subscribe(observer)
        assert (events.watches_batches, events.watches_tasks) == (True, False)
        events.unsubscribe(observer)
    assert not events.watches_batches


def test_an_observer_that_fails_keeps_no_event_from_the_others(caplog: pytest.LogCaptureFixture) -> None:
    Events(Broken(), EventLog()).rescued(JOB)
    wrote: list[Any] = []

    class Breaks(Observer):
        def wrote(self, executions: Any, seconds: float) -> None:
            raise ValueError("no")

    class Hears(Observer):
        def wrote(self, executions: Any, seconds: float) -> None:
            wrote.append(executions)

    Events(Breaks(), Hears()).wrote([], 0.1)
    assert wrote == [[]]
    assert "An observer failed observer='Broken'" in caplog.text
    assert f"Rescued a task of a lost worker id={JOB.id}" in caplog.text


@pytest.mark.parametrize("name", [name for name in vars(Observer) if not name.startswith("_")])
def test_every_event_reaches_the_subscribers(name: str) -> None:
    if name.startswith("watches_"):
        return
    called: list[Any] = []

    def record(self: Observer, *args: Any, **kwargs: Any) -> None:
        called.append((args, kwargs))

    parameters = list(inspect.signature(getattr(Observer, name)).parameters.values())[1:]
    args = [one.name for one in parameters if one.kind is not one.KEYWORD_ONLY]
    kwargs = {one.name: True for one in parameters if one.kind is one.KEYWORD_ONLY}
    probe = type("Probe", (Observer,), {name: record})()
    getattr(Events(probe), name)(*args, **kwargs)
    assert called == [(tuple(args), kwargs)]
