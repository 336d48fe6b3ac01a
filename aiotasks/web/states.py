"""States: what a browser is shown of tasks, as JSON."""

import asyncio
import json
from base64 import urlsafe_b64encode
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple
from uuid import UUID

from django.tasks import task_backends
from django.tasks.backends.base import BaseTaskBackend
from django.tasks.exceptions import TaskResultDoesNotExist
from django.utils import timezone

from ..backend import PostgresBackend
from ..exceptions import InvalidRow, UnknownTask
from ..metadata.progress import KEY
from ..metadata.values import Metadata, public, read_row
from ..results import parse_id
from ..rows import FINAL, AnyResult, Status
from ..store.blocks import belongs_to_django
from ..store.loop import resources
from ..store.route import Route
from ..store.states import TaskState
from .access import Wanted

__all__ = ["DIGEST_LENGTH", "Shown", "look_up", "states_json"]

# Characters of a digest.
DIGEST_LENGTH = 8

# In a script element, too, the JSON ends nothing.
_ESCAPES = {ord("<"): "\\u003C", ord(">"): "\\u003E", ord("&"): "\\u0026"}


class Shown(NamedTuple):
    """One task as it is shown: its JSON text, and whether it changes no more. ``digest``: as good as
    unique."""

    text: str
    digest: str
    is_there: bool
    is_final: bool

    @classmethod
    def of(cls, values: Mapping[str, Any], *, is_there: bool = True) -> "Shown":
        try:
            text = _dump(values)
        except ValueError:  # infinite numbers, which other code has written as 1e400
            text = _dump({**values, **_of_metadata({})})
        digest = urlsafe_b64encode(blake2b(text.encode(), digest_size=6).digest()).decode()
        return cls(text, digest, is_there, not is_there or values["is_finished"])

    def sent(self) -> "Shown":
        """The same without its text, which may be 64 KiB."""
        return self._replace(text="")


def _dump(values: Mapping[str, Any]) -> str:
    return json.dumps(values, separators=(",", ":"), allow_nan=False).translate(_ESCAPES)


def states_json(shown: Iterable[Shown]) -> str:
    """Return the JSON of these tasks."""
    return f'{{"tasks":[{",".join(each.text for each in shown)}]}}'


async def look_up(wanted: Collection[Wanted]) -> dict[Wanted, Shown]:
    """Return how these tasks are now. Raises ``django.db`` errors where the database fails."""
    found: dict[Wanted, Shown] = {}
    by_backend = attrgetter("backend")
    for alias, several in groupby(sorted(wanted, key=by_backend), by_backend):
        some = list(several)
        backend = task_backends[alias]
        if isinstance(backend, PostgresBackend):
            ids = [parse_id(each.id) for each in some]
            states = await _select(backend, [id for id in ids if id is not None])
            found |= {each: _shown(each.id, states.get(id)) for each, id in zip(some, ids, strict=True)}
        else:
            found |= {each: await _shown_of_another(backend, each.id) for each in some}
    return found


async def _select(backend: PostgresBackend, ids: list[UUID]) -> dict[UUID | None, TaskState]:
    """By id; concurrent look-ups share a statement."""
    if belongs_to_django(backend.config.database):
        states: Iterable[TaskState | None] = await backend.dispatch(_select_over_django, ids)
    else:
        batcher = resources(backend.config).states
        states = await asyncio.gather(*(batcher.submit((backend.alias, id)) for id in ids))
    return {state.id: state for state in states if state is not None}


async def _select_over_django(backend: PostgresBackend, route: Route, ids: list[UUID]) -> list[TaskState]:
    return await route.run(lambda store: store.select_states(ids, backend.alias))


def _shown(id: str, state: TaskState | None) -> Shown:
    if state is None:
        return Shown.of({"id": id, "status": None, "is_finished": True}, is_there=False)
    if state.shown is None:
        state.shown = _shown_of_ours(state)
    shown: Shown = state.shown
    return shown


def _shown_of_ours(state: TaskState) -> Shown:
    try:
        metadata = read_row(state.metadata, state.id)
    except InvalidRow:  # other code's; the task's status is shown nevertheless
        metadata = {}
    return Shown.of(
        {
            "id": str(state.id),
            "status": Status.READY if state.status == Status.SCHEDULED else state.status,
            "is_finished": state.status in FINAL,
            "is_cancelled": state.is_cancelled,
            **_of_metadata(public(metadata)),
            "attempts": state.attempts,
            "enqueued_at": state.enqueued_at,
            "started_at": state.started_at,
            "finished_at": state.finished_at,
        }
    )


def _of_metadata(metadata: Metadata) -> dict[str, Any]:
    progress = metadata.pop(KEY, None)
    return {"progress": progress if isinstance(progress, dict) else None, "metadata": metadata}


async def _shown_of_another(backend: BaseTaskBackend, id: str) -> Shown:
    """The same for a backend that isn't ours: Django's for tests, for one."""
    try:
        result: AnyResult = await backend.aget_result(id)
    except (TaskResultDoesNotExist, UnknownTask, NotImplementedError):
        return _shown(id, None)
    metadata = getattr(result, "metadata", None)
    return Shown.of(
        {
            "id": result.id,
            "status": result.status,
            "is_finished": result.is_finished,
            "is_cancelled": getattr(result, "is_cancelled", False),
            **_of_metadata(dict(metadata) if isinstance(metadata, Mapping) else {}),
            "attempts": len(result.worker_ids),
            "enqueued_at": _iso(result.enqueued_at),
            "started_at": _iso(result.started_at),
            "finished_at": _iso(result.finished_at),
        }
    )


def _iso(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    aware = timezone.make_aware(moment) if timezone.is_naive(moment) else moment
    return aware.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
