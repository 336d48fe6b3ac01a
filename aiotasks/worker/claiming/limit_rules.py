"""LimitRules: what the code of this process says of limits, for the claims of their keys."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from ...exceptions import UnknownTask
from ...policies.limits import known_limits
from ...store.limits import LimitRule
from ..events import NULL, Observer

__all__ = ["LimitRules", "name_of"]

# Paths of tasks whose modules have been imported for a limit, and unknown names, that are remembered. With
# more it forgets them all, and imports again; known modules cost nothing.
PATHS_LIMIT = 1000

# Seconds for which a worker leaves the keys of a limit that its code doesn't declare to others. Chosen: as
# long as a rolling deploy takes, whose old workers would ignore the numbers that the new code says.
LEAVE_FOR = 600.0

NOT_DECLARED = "its task's module doesn't declare it"


def name_of(key: str) -> str:
    """Return the name of the limit that a stored key belongs to."""
    return key.partition(":")[0]


class LimitRules:
    """A limit is declared by the module of a task that has it, so that is imported where the name is new, as
    for an unknown path: by ``resolve``, in a thread. Where nothing here declares it, other workers may know
    it, whose code is newer or older: its tasks are left to them, unless an operator has set it. After
    LEAVE_FOR one task of each of its keys runs at a time, the oldest first, because the limit may have been
    taken out of the code.
    """

    def __init__(
        self,
        resolve: Callable[[str], Awaitable[object]],
        *,
        waits_for_rates: bool = True,
        observer: Observer = NULL,
    ) -> None:
        """``waits_for_rates``: False for tests, which have no time."""
        self._resolve = resolve
        self._waits_for_rates = waits_for_rates
        self._observer = observer
        self._tried: dict[str, str] = {}  # why the module of a path doesn't help
        self._importing: dict[str, asyncio.Task[None]] = {}
        self._unknown_since: dict[str, float] = {}  # by time.monotonic()

    def is_known(self, name: str, task_path: str) -> bool:
        """Return whether there is nothing to import: the name is known, or the task's module doesn't tell."""
        return name in known_limits() or task_path in self._tried

    def meet(self, name: str, task_path: str) -> None:
        """Note a limit that tasks have, of which ``is_known()`` has returned True."""
        if name in known_limits() or name in self._unknown_since:
            return
        if len(self._unknown_since) >= PATHS_LIMIT:
            self._unknown_since.clear()
        self._unknown_since[name] = time.monotonic()
        self._observer.limit_unknown(name, task_path, self._tried.get(task_path, NOT_DECLARED))

    def rule(self, name: str) -> LimitRule | None:
        """Return what is said of a limit, or what is assumed; None for one whose tasks are left to others."""
        limit = known_limits().get(name)
        if limit is None:
            now = time.monotonic()
            is_left = now - self._unknown_since.get(name, now) < LEAVE_FOR
            return None if is_left else LimitRule(name, concurrency=1, ordered=True)
        return LimitRule(
            name,
            concurrency=limit.concurrency,
            pace=limit.pace if self._waits_for_rates else None,
            burst=limit.burst,
            weight=limit.weight,
            ordered=limit.ordered,
        )

    def learn(self, task_path: str, done: Callable[[], Any]) -> None:
        """Import the module of a task, and call ``done``."""
        importing = self._importing.get(task_path)
        if importing is None:
            importing = self._importing[task_path] = asyncio.create_task(
                self._import(task_path), name="aiotasks import"
            )
        importing.add_done_callback(lambda _: done())

    def close(self) -> None:
        """Wait for no import any longer."""
        for importing in self._importing.values():
            importing.cancel()

    async def _import(self, task_path: str) -> None:
        reason = NOT_DECLARED
        try:
            await self._resolve(task_path)
        except UnknownTask as error:
            reason = str(error)
        finally:
            if len(self._tried) >= PATHS_LIMIT:
                self._tried.clear()
            self._tried[task_path] = reason
            del self._importing[task_path]
