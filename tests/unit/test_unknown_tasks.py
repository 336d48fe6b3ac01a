"""Snoozes of tasks that cannot be imported: how long they are."""

from types import SimpleNamespace
from typing import Any

import pytest

from aiotasks.exceptions import UnknownTask
from aiotasks.worker.running.unknown_tasks import JITTER, UNKNOWN_DELAY, UnknownTasks


@pytest.mark.parametrize("workers", [2, 4, 5, 10])
async def test_another_worker_looks_first_by_and_by(workers: int) -> None:
    """Which one follows from the second in which the task is due (Promoter)."""
    failures: Any = SimpleNamespace(failed=lambda error: None)
    first = set()
    due = 0.0
    for number in range(200):
        job: Any = SimpleNamespace(id=number, task_path=f"site.unknown{number}")
        delay = UnknownTasks(failures).snooze(job, UnknownTask(job.task_path, "no")).delay
        assert UNKNOWN_DELAY <= delay <= UNKNOWN_DELAY * (1 + JITTER)
        due += delay
        first.add(int(due) % workers)
    assert first == {*range(workers)}
