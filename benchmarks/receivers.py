"""An app with a sync receiver of ``task_finished``, as sites have them."""

from collections import Counter
from typing import Any

from django.apps import AppConfig
from django.tasks.signals import task_finished

__all__ = ["ReceiversConfig"]

_seen: Counter[str] = Counter()


class ReceiversConfig(AppConfig):
    name = "benchmarks.receivers"

    def ready(self) -> None:
        task_finished.connect(_count, dispatch_uid="benchmarks")


def _count(task_result: Any, **kwargs: Any) -> None:
    _seen[task_result.status] += 1
