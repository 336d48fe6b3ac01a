"""Which limits and keys of limits are shown, with how many of their tasks wait."""

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import NamedTuple

from ..exceptions import UnknownTask
from ..policies.limits import known_limits
from ..registry import resolve
from ..rows import LANES, keyed_lane
from ..store.inspection import ReadyCount
from ..store.limits import LimitState
from ..store.store import Store
from .counts import COUNT_LIMIT, Count
from .limit_statuses import LimitStatus, Waiting, status_of

__all__ = ["select_statuses"]

# Keys that are shown at once.
MOST_KEYS = 200

# Keys with waiting tasks that are looked at. Measured: among 100,000, with and without statistics, the loose
# scan of their index reads four buffers for each.
MOST_LOOKED_AT = 1_000

# Tasks that are counted of all keys together, and of each at the least.
COUNT_LIMIT_OF_ALL, COUNT_LIMIT_AT_LEAST = 200_000, 100


class _Walk(NamedTuple):
    """Keys that have READY tasks, in the order of the index, with the path of one task of each. ``capped``:
    there may be more."""

    paths: dict[str, str]
    capped: bool


async def select_statuses(
    store: Store,
    backend: str,
    *,
    name: str | None = None,
    key: str | None = None,
    standing: bool = False,
    learns: Mapping[str, str] | None = None,
) -> list[LimitStatus]:
    """Return the states of a stored key; or of a name, or of all names, with the keys that have something to
    say or tasks that wait.

    standing: only of what stands still until somebody acts, a time comes, or a retry. learns: with these
    MOVED_TASKS import the modules of tasks whose limits this process doesn't know, which blocks; and if it
    doesn't know them then, they stand still, too.

    Raises ``django.db`` errors where the database fails.
    """
    found = await store.select_limits(backend, name if key is None else key, MOST_KEYS, standing=standing)
    rows = {row.key: row for row in found}
    has_something = set(rows)
    shown = set(rows) if key is None else {key}
    walk = None
    if key is None and (learns is not None or not standing):
        walk = await _walk(store, backend, name)
        if learns is not None:
            _learn(walk, learns)
        shown |= _without_rows(rows, walk, name, standing=standing)
        if walk.capped and name is None:
            walk = None  # it may not have come to some limits
    for each in sorted({*map(_name_of, shown)} - rows.keys()):
        # The limit's own row is the first of its keys.
        rows |= {row.key: row for row in await store.select_limits(backend, each, 1) if row.key == each}
    waiting = await _count(store, backend, shown, walk)
    known = known_limits()
    statuses = {each: status_of(each, rows, known, waiting) for each in sorted(shown)}
    return [
        one
        for each, one in statuses.items()
        if not standing or each in has_something or one.stands == "unknown"
    ]


def _without_rows(
    rows: Mapping[str, LimitState], walk: _Walk, name: str | None, *, standing: bool
) -> set[str]:
    """Return what is shown besides the keys that have rows: limits, and keys with tasks that wait."""
    known = known_limits()
    if standing:
        return {each for each in map(_name_of, walk.paths) if each not in known}
    names = {*(known if name is None else [name]), *map(_name_of, rows)}
    more = [each for each in walk.paths if each not in rows][: max(0, MOST_KEYS - len(rows))]
    return names | {*more, *map(_name_of, more)}


async def _walk(store: Store, backend: str, name: str | None = None) -> _Walk:
    """Look for keys that have READY tasks, of a limit or of all.

    Those of a limit come behind its name; in which order, and what comes between, the database decides.
    """
    sources = await store.list_queues(backend)
    queues = {lane: [one.queue_name for one in sources if one.lane == keyed_lane(lane)] for lane in LANES}
    at_most = max(1, MOST_LOOKED_AT // max(1, sum(map(len, queues.values()))))
    paths: dict[str, str] = {}
    capped = False
    for lane, names in queues.items():
        if not names:
            continue
        found = await store.list_keys(backend, lane, [(each, name or "") for each in names], at_most)
        numbers = Counter(one.queue_name for one in found)
        capped = capped or max(numbers.values(), default=0) >= at_most
        paths |= {one.key: one.task_path for one in found if name in (None, _name_of(one.key))}
    return _Walk(paths, capped)


def _learn(walk: _Walk, moved_tasks: Mapping[str, str]) -> None:
    """Do as a worker does that meets tasks of an unknown limit."""
    for path in {path for key, path in walk.paths.items() if _name_of(key) not in known_limits()}:
        with suppress(UnknownTask):
            resolve(path, moved_tasks)


async def _count(store: Store, backend: str, shown: Iterable[str], walk: _Walk | None) -> dict[str, Waiting]:
    """Return what waits of keys, and of limits with all their keys. ``walk``: over the keys of these limits;
    None to walk over those of each."""
    keys = {*shown}
    walks = {each: walk or await _walk(store, backend, each) for each in keys if each == _name_of(each)}
    parts = {
        name: {name, *(key for key in one.paths if _name_of(key) == name)} for name, one in walks.items()
    }
    keys = keys.union(*parts.values())
    limit = min(COUNT_LIMIT, max(COUNT_LIMIT_AT_LEAST, COUNT_LIMIT_OF_ALL // max(1, len(keys))))
    counts = await store.count_keyed_jobs(backend, sorted(keys), limit)
    none = ReadyCount(0, None)
    waiting = {key: _waiting([counts.get(key, none)], limit) for key in keys}
    for name, part in parts.items():
        waiting[name] = _waiting([counts.get(key, none) for key in part], limit, capped=walks[name].capped)
    return waiting


def _waiting(counts: list[ReadyCount], limit: int, *, capped: bool = False) -> Waiting:
    ages = [one.oldest for one in counts if one.oldest is not None]
    number = Count(sum(one.number for one in counts), capped or any(one.number >= limit for one in counts))
    return Waiting(number, max(0.0, *ages) if ages else None)


def _name_of(key: str) -> str:
    return key.partition(":")[0]
