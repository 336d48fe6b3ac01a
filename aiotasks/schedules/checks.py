"""System checks of schedules: what of the code's can't be declared."""

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.core.checks import CheckMessage, Error, Warning, register
from django.core.exceptions import ImproperlyConfigured
from django.tasks import task_backends
from django.tasks.exceptions import InvalidTaskBackend

from ..rows import Schedule
from .cron import Times

if TYPE_CHECKING:
    from .discovery import Trouble

__all__ = ["check_schedules"]

# How many ticks are looked at for the shortest time between two.
TICKS = 10


@register
def check_schedules(**kwargs: Any) -> list[CheckMessage]:
    """Return E012 for schedules that can't be declared, W005 for modules that may declare some and can't be
    imported (one message for all that fail with one error; E012 where schedules elsewhere do, too), W006 for
    each schedule whose task holds its key until the next tick, and W007 for each module that declares some
    and isn't looked at. Connects nowhere."""
    if not apps.ready:
        return []  # the modules may import models
    # Imported here, because it takes 75 ms, and most processes run no checks.
    from ..backend import PostgresBackend
    from .discovery import read_code

    troubles: dict[str, Trouble] = {}  # in their order; one of no backend is found with each
    held: list[CheckMessage] = []
    elsewhere: dict[str, list[str]] = {}
    for alias in task_backends.settings:
        try:
            backend = task_backends[alias]
            if not isinstance(backend, PostgresBackend) or backend.config.schedules is False:
                continue
            code = read_code(alias, backend.config)
        except (ImproperlyConfigured, InvalidTaskBackend):
            continue  # E002 reports it, or Django
        troubles |= {trouble.text(): trouble for trouble in code.troubles()}
        held += [message for each in code.declarations for message in _about_key(each.row)]
        for name, module in code.elsewhere.items():
            elsewhere.setdefault(module, []).append(name)
    return [
        *(_about_trouble(text, trouble) for text, trouble in troubles.items()),
        *held,
        *(_about_elsewhere(module, names) for module, names in elsewhere.items()),
    ]


def _about_elsewhere(module: str, names: list[str]) -> CheckMessage:
    return Warning(
        f"{module} declares schedules that don't count, because workers don't import it for them: "
        f"{', '.join(sorted(names))}",
        hint="Move them into the module `tasks` or `schedules` of an installed app, or name all modules that "
        "declare schedules in OPTIONS['SCHEDULES'].",
        id="aiotasks.W007",
    )


def _about_trouble(text: str, trouble: "Trouble") -> CheckMessage:
    hint = (
        "Fix it; or have OPTIONS['SCHEDULES'] name the modules that declare schedules."
        if trouble.modules
        else None
    )
    if trouble.problems:
        return Error(text, hint=hint, id="aiotasks.E012")
    return Warning(text, hint=hint, id="aiotasks.W005")


def _about_key(row: Schedule) -> Iterator[CheckMessage]:
    if row.unique_period is None:
        return
    times = Times(row.expression, row.timezone)
    ticks = [datetime.now(UTC)]
    while len(ticks) < TICKS and (tick := times.next_after(ticks[-1])) is not None:
        ticks.append(tick)
    interval = min(((later - tick).total_seconds() for tick, later in pairwise(ticks[1:])), default=inf)
    if row.unique_period >= interval:
        yield Warning(
            f"Schedule {row.name!r} ticks every {interval:g} s, and its task holds its unique_key for "
            f"{row.unique_period:g} s, so ticks are left out.",
            hint="Have unique_for be some seconds shorter than the time between two ticks: it counts from "
            "the enqueue, which is a little later than the tick.",
            id="aiotasks.W006",
        )
