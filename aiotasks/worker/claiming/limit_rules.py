"""LimitRules: what the code of this process says of limits, for the claims of their keys."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from ...exceptions import UnknownTask
from ...policies.limits import known_limits
from ...store.limits import LimitRule
from ..events import NULL, Observer

__all__ = ["LimitRules", "name_of"]

# Paths of tasks whose modules have been imported for a limit, that are remembered. With more it forgets them
# all, and imports again; known modules cost nothing.
PATHS_LIMIT = 1000


def name_of(key: str) -> str:
    """Return the name of the limit that a stored key belongs to."""
    return key.partition(":")[0]


class LimitRules:
    """A limit is declared by the module of a task that has it, so that is imported where the name is new, as
    for an unknown path: by ``resolve``, in a thread. Where nothing here declares it (an older release is
    running, or a newer one has gone), one task of each key runs at a time, the oldest first.
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
        self._tried: set[str] = set()
        self._importing: dict[str, asyncio.Task[None]] = {}
        self._reported: set[str] = set()

    def is_known(self, name: str, task_path: str) -> bool:
        """Return whether there is nothing to import: the name is known, or the task's module doesn't tell."""
        return name in known_limits() or task_path in self._tried

    def rule(self, name: str) -> LimitRule:
        """Return what is said of a limit, or what is assumed."""
        limit = known_limits().get(name)
        if limit is None:
            return LimitRule(name, concurrency=1, ordered=True)
        return LimitRule(
            name,
            concurrency=limit.concurrency,
            pace=limit.pace if self._waits_for_rates else None,
            burst=limit.burst,
            weight=limit.weight,
            ordered=limit.ordered,
        )

    def learn(self, name: str, task_path: str, done: Callable[[], Any]) -> None:
        """Import the module of a task, and call ``done``."""
        importing = self._importing.get(task_path)
        if importing is None:
            importing = self._importing[task_path] = asyncio.create_task(
                self._import(name, task_path), name="aiotasks import"
            )
        importing.add_done_callback(lambda _: done())

    def close(self) -> None:
        """Wait for no import any longer."""
        for importing in self._importing.values():
            importing.cancel()

    async def _import(self, name: str, task_path: str) -> None:
        reason = "its task's module doesn't declare it"
        try:
            await self._resolve(task_path)
        except UnknownTask as error:
            reason = str(error)
        finally:
            if len(self._tried) >= PATHS_LIMIT:
                self._tried.clear()
            self._tried.add(task_path)
            del self._importing[task_path]
        if name not in known_limits() and name not in self._reported:
            if len(self._reported) >= PATHS_LIMIT:
                self._reported.clear()
            self._reported.add(name)
            self._observer.limit_unknown(name, task_path, reason)
