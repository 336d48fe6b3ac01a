"""What stands in the places of Django's DummyBackend and ImmediateBackend."""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from django.db import connections

from aiotasks.backend import PostgresBackend
from aiotasks.models import Task
from aiotasks.testing import drain


def _call(call: Any) -> Any:
    """Call it here, or in a thread where a loop runs: the tests look into the backend in coroutines, too."""
    if asyncio._get_running_loop() is None:
        return call()

    def run() -> Any:
        try:
            return call()
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(run).result()


class StoringBackend(PostgresBackend):
    """As DummyBackend: what was enqueued can be looked at."""

    @property
    def results(self) -> list[Any]:
        def look() -> list[Any]:
            ids = Task.objects.filter(backend=self.alias).order_by("id").values_list("pk", flat=True)
            return [self.get_result(str(id)) for id in ids]

        found: list[Any] = _call(look)
        return found

    def clear(self) -> None:
        _call(Task.objects.filter(backend=self.alias).delete)


class RunningBackend(PostgresBackend):
    """As ImmediateBackend: what is enqueued has run."""

    def enqueue(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        result = super().enqueue(task, args, kwargs)
        drain(self.alias)
        result.refresh()
        return result

    async def aenqueue(self, task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        result = await super().aenqueue(task, args, kwargs)
        await drain(self.alias)
        await result.arefresh()
        return result
