"""What the rivals under django.tasks run; as in tasks.py, but plain functions."""

import random
import time

from django.tasks import task

from .models import ITEMS, Item

__all__ = ["cpu", "noop", "now", "queries"]


@task
def noop() -> None:
    """Nothing."""


@task
def cpu() -> None:
    """A millisecond of CPU time."""
    end = time.thread_time() + 0.001
    while time.thread_time() < end:
        pass


@task
def queries() -> None:
    """Five look-ups by primary key, one after another."""
    for _ in range(5):
        Item.objects.get(pk=random.randint(1, ITEMS))


@task
def now() -> float:
    """When its body ran, by the machine's clock."""
    return time.time()
