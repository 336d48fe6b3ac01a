"""Lines of finished tasks: what they say, and how many there are in a crowd. By a clock of the test's own."""

import json
import logging
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest
from django.tasks import signals as django_signals

from aiotasks import registry
from aiotasks.codec import dump_error
from aiotasks.exceptions import TaskCancelled
from aiotasks.worker.outcomes import Failed, Retried, Succeeded
from aiotasks.worker.task_log import MOST_LINES, TaskLog
from tests.worker.harness import until

logger = logging.getLogger("aiotasks.tasks")

CHARGE = "shop.tasks.charge"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def task_log(clock: Clock, caplog: pytest.LogCaptureFixture) -> TaskLog:
    caplog.set_level(logging.INFO)
    return TaskLog(slow=5.0, moved_tasks={"shop.tasks.old": CHARGE}, clock=clock)


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._resolved, CHARGE, cast("Any", object()))


def moment(seconds: float) -> bytes:
    return int(seconds * 1_000_000).to_bytes(8, signed=True)


def ended(outcome: Any = None, *, seconds: float | None = 0.04, path: str = CHARGE) -> Any:
    job = SimpleNamespace(
        id=uuid4(),
        task_path=path,
        queue_name="default",
        worker_ids=[uuid4()],
        ready_at=moment(100.0),
        last_attempted_at=moment(100.5),
    )
    return SimpleNamespace(job=job, outcome=outcome or Succeeded(None, "null"), seconds=seconds)


def failure(error: BaseException) -> Failed:
    try:
        raise error
    except BaseException as raised:
        return Failed(raised, dump_error(raised, limit=10_000, redact=None))


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records]


async def test_a_task_has_a_line(task_log: TaskLog, caplog: pytest.LogCaptureFixture) -> None:
    execution = ended()
    task_log.wrote([execution], 0.001)
    facts = f"id={execution.job.id} queue=default attempt=1 wait=0.500 took=0.040"
    assert lines(caplog) == [("INFO", f"shop.tasks.charge succeeded {facts}")]
    (record,) = caplog.records
    fields = ("task_path", "task_id", "queue", "attempt", "wait", "took", "outcome")
    assert [getattr(record, name) for name in fields] == [
        "shop.tasks.charge",
        str(execution.job.id),
        "default",
        1,
        0.5,
        0.04,
        "succeeded",
    ]


async def test_names_that_nobody_should_have_written(
    task_log: TaskLog, caplog: pytest.LogCaptureFixture
) -> None:
    execution = ended(path="shop\n2026 ERROR forged")
    execution.job.queue_name = "\x1b[31mred"
    task_log.wrote([execution], 0.001)
    ((_, text),) = lines(caplog)
    assert text.startswith("shop\\n2026 ERROR forged succeeded id=")
    assert " queue=\\x1b[31mred " in text


async def test_a_failure_says_what_and_where(
    task_log: TaskLog, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(django_signals.logger, "disabled", True)  # its record would have the traceback
    task_log.wrote([ended(failure(ValueError("no such\ncard")))], 0.001)
    ((level, text),) = lines(caplog)
    line, *traceback = text.split("\n")
    assert level == "ERROR"
    assert line.startswith("shop.tasks.charge failed id=")
    assert "error='ValueError: no such\\ncard' at=tests/unit/test_task_log.py:" in line
    assert line.endswith(" in failure")
    assert traceback[0] == "  Traceback (most recent call last):"
    assert all(one.startswith("  ") for one in traceback)
    (record,) = caplog.records
    assert record.traceback.startswith("Traceback")  # type: ignore[attr-defined]
    assert record.exception == "builtins.ValueError"  # type: ignore[attr-defined]


async def test_a_failure_whose_place_cannot_be_told_has_a_line(
    task_log: TaskLog, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiotasks.worker.task_log.own_frame", lambda *args: 1 / 0)
    task_log.wrote([ended(failure(ValueError("no"))), ended()], 0.001)
    (_, failed), (_, succeeded) = lines(caplog)
    assert failed.split("\n")[0].endswith(" error='ValueError: no' at=-")
    assert " succeeded id=" in succeeded


async def test_one_error_and_one_traceback_a_failure_in_a_handler(
    task_log: TaskLog, caplog: pytest.LogCaptureFixture
) -> None:
    """pytest's handler gets Django's record, too, as a site's console or tracker does."""
    task_log.wrote([ended(failure(ValueError("no")))], 0.001)
    ((level, text),) = lines(caplog)
    assert level == "WARNING"
    assert "\n" not in text
    assert not hasattr(caplog.records[0], "traceback")


async def test_the_error_is_ours_where_django_has_no_record_of_it(
    task_log: TaskLog, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is announced of a task that can't be imported here, and a site may disconnect the receiver."""
    failed = failure(ValueError("no"))
    task_log.wrote([ended(failed, path="shop.gone.charge"), ended(failed, path="shop.tasks.old")], 0.001)
    task_log.lost(ended(path="shop.gone.charge").job, failed.text)
    assert django_signals.task_finished.disconnect(django_signals.log_task_finished)
    try:
        task_log.wrote([ended(failed)], 0.001)
    finally:
        django_signals.task_finished.connect(django_signals.log_task_finished)
    assert [level for level, _ in lines(caplog)] == ["ERROR", "WARNING", "ERROR", "ERROR"]
    assert [hasattr(record, "traceback") for record in caplog.records] == [True, False, True, True]


async def test_a_retry_has_no_traceback(task_log: TaskLog, caplog: pytest.LogCaptureFixture) -> None:
    task_log.retried(ended().job, Retried(2.0, failure(ValueError("busy")), 1, 3), 0.04)
    ((level, text),) = lines(caplog)
    assert level == "WARNING"
    assert text.startswith("shop.tasks.charge failed and is tried again in 2.000 s id=")
    assert " failures=1 max_attempts=3 error='ValueError: busy' at=tests/unit/" in text
    assert "\n" not in text


async def test_a_cancelled_task_is_no_failure(task_log: TaskLog, caplog: pytest.LogCaptureFixture) -> None:
    task_log.wrote([ended(failure(TaskCancelled("The task was cancelled.")))], 0.001)
    ((level, text),) = lines(caplog)
    assert level == "INFO"
    assert text.startswith("shop.tasks.charge was cancelled id=")


async def test_a_crowd_of_cancelled_tasks_is_counted(
    task_log: TaskLog, caplog: pytest.LogCaptureFixture
) -> None:
    cancelled = failure(TaskCancelled("The task was cancelled."))
    task_log.wrote([ended(cancelled) for _ in range(200)], 0.001)
    task_log.wrote([ended(cancelled)], 0.001)
    task_log.flush()
    *each, (_, summary) = lines(caplog)
    assert len(each) == MOST_LINES
    assert summary.startswith("201 tasks finished in 0.0 s failed=0 ")


async def test_a_lost_task_took_nobody_knows_how_long(
    task_log: TaskLog, caplog: pytest.LogCaptureFixture
) -> None:
    job = ended().job
    job.ready_at = None
    task_log.lost(
        job, json.dumps({"class": "aiotasks.exceptions.TaskExpired", "traceback": "TaskExpired: late\n"})
    )
    ((_, text),) = lines(caplog)
    assert text.endswith(" wait=- took=- error='TaskExpired: late' at=-")


async def test_a_slow_task_is_a_warning(task_log: TaskLog, caplog: pytest.LogCaptureFixture) -> None:
    task_log.wrote([ended(seconds=5.0), ended(seconds=5.001)], 0.001)
    (first, _), (second, text) = lines(caplog)
    assert (first, second) == ("INFO", "WARNING")
    assert text.endswith(" took=5.001 slow_task=5")


async def test_fifty_a_second_have_a_line_each_the_others_one(
    task_log: TaskLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(MOST_LINES):
        task_log.wrote([ended()], 0.001)
    assert len(lines(caplog)) == MOST_LINES
    task_log.wrote([ended(), ended(seconds=0.24, path="shop.tasks.slow")], 0.001)
    assert len(lines(caplog)) == MOST_LINES
    clock.now += 1.0
    caplog.clear()
    task_log.wrote([ended()], 0.001)  # in the second after such a one
    facts = "failed=0 retried=0 wait=0.500 took=0.044 longest=0.240 (shop.tasks.slow)"
    assert lines(caplog) == [("INFO", f"52 tasks finished in 1.0 s {facts}")]
    clock.now += 1.0
    caplog.clear()
    task_log.wrote([ended()], 0.001)  # and after a second with one
    assert [text.split(" ", 1)[1][:8] for _, text in lines(caplog)] == ["tasks fi", "succeede"]


async def test_fifty_in_a_second_stay_lines(
    task_log: TaskLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        task_log.wrote([ended() for _ in range(MOST_LINES)], 0.001)
        clock.now += 1.0
    task_log.flush()
    assert len(lines(caplog)) == 3 * MOST_LINES


async def test_a_crowd_that_has_passed_is_over(
    task_log: TaskLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    task_log.wrote([ended() for _ in range(500)], 0.001)
    clock.now += 3.0
    caplog.clear()
    task_log.wrote([ended()], 0.001)
    assert [text.split(" ", 2)[1] for _, text in lines(caplog)] == ["tasks", "succeeded"]


async def test_failures_and_slow_ones_keep_their_lines_in_a_crowd(
    task_log: TaskLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    task_log.wrote([ended() for _ in range(500)], 0.001)
    clock.now += 1.0
    caplog.clear()
    task_log.wrote(
        [*(ended() for _ in range(100)), ended(failure(ValueError("no"))), ended(seconds=7.0)], 0.001
    )
    said = [text.split(" ", 2)[1] for _, text in lines(caplog)]
    assert said == ["tasks", "failed", "succeeded"]
    task_log.flush()
    assert lines(caplog)[-1][1].startswith("102 tasks finished in 0.0 s failed=1 ")


async def test_failures_flood_no_log(
    task_log: TaskLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    task_log.wrote([ended(failure(ValueError("no"))) for _ in range(70)], 0.001)
    task_log.retried(ended().job, Retried(2.0, failure(ValueError("busy")), 1, 3), 0.04)
    task_log.flush()
    said = lines(caplog)
    assert sum("charge failed " in text for _, text in said) == MOST_LINES
    assert said[-2][1].startswith("70 tasks finished in 0.0 s failed=70 retried=1 ")
    assert said[-1] == ("WARNING", "21 more attempts failed in 0.0 s, without lines of their own")


async def test_above_info_only_failures_and_slow_ones_count(
    task_log: TaskLog, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    task_log.wrote(
        [*(ended() for _ in range(500)), ended(failure(ValueError("no"))), ended(seconds=7.0)], 0.001
    )
    task_log.flush()
    assert [level for level, _ in lines(caplog)] == ["WARNING", "WARNING"]


async def test_the_line_of_a_crowd_comes_without_further_tasks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    task_log = TaskLog()
    task_log.wrote([ended() for _ in range(60)], 0.001)
    await until(lambda: "60 tasks finished in 1." in caplog.text)
