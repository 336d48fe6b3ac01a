"""LimitRules: what the code of this process says of limits, for the claims of their keys."""

import asyncio
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

# Seconds until a claim names a key again whose limit isn't known here: an operator may have set it, and the
# wake-up for that was lost.
LEAVE_FOR = 60.0

NOT_DECLARED = "its task's module doesn't declare it"


def name_of(key: str) -> str:
    """Return the name of the limit that a stored key belongs to."""
    return key.partition(":")[0]


class LimitRules:
    """A limit is declared by the module of a task that has it, so that is imported where the name is new, as
    for an unknown path: by ``resolve``, in a thread. Where nothing here declares it, other workers may know
    it, whose code is newer or older: its tasks are left to them, unless an operator has set it.
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
        self._met: set[str] = set()  # names that nothing here declared

    def meet(self, name: str, task_path: str) -> bool:
        """Note a limit that tasks have; returns whether there is nothing to import: the name is known, or the
        task's module doesn't tell.
        """
        if name in known_limits():
            return True
        reason = self._tried.get(task_path)
        if reason is not None and name not in self._met:
            if len(self._met) >= PATHS_LIMIT:
                self._met.clear()
            self._met.add(name)
            self._observer.limit_unknown(name, task_path, reason)
        return reason is not None

    def unknown(self) -> list[str]:
        """Return the names of limits that tasks have, and nothing here declares."""
        return sorted(self._met - known_limits().keys())

    def rule(self, name: str) -> LimitRule | None:
        """Return what the code says of a limit; None for one whose tasks are left to others."""
        limit = known_limits().get(name)
        if limit is None:
            return None
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
