"""A Store whose statements are explained, with the planner settings of a worker's sessions."""

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import asyncpg
from asyncpg.prepared_stmt import PreparedStatement

from aiotasks.db.statement import Statement
from aiotasks.store.store import Store

__all__ = ["Cost", "Explainer"]

# Runs before the first that counts: from the sixth on PostgreSQL may keep a plan.
WARM_UP = 7


class Cost(NamedTuple):
    """``ms`` of execution by the server, and the buffers that were read, of one run."""

    ms: float
    buffers: int


class _Explained(Exception):
    """Takes the place of the rows."""

    def __init__(self, cost: Cost) -> None:
        self.cost = cost


class Explainer:
    """A driver for ``Store`` that runs each statement by EXPLAIN ANALYZE, and rolls it back."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._prepared: dict[str, PreparedStatement] = {}
        self.store = Store(self)  # type: ignore[arg-type]  # only fetch() is needed

    async def cost(self, call: Callable[[Store], Awaitable[object]]) -> Cost:
        """Return what the statement costs that ``call`` runs: the one in the middle of five."""
        for _ in range(WARM_UP):
            await self._once(call)
        return sorted([await self._once(call) for _ in range(5)])[2]

    async def _once(self, call: Callable[[Store], Awaitable[object]]) -> Cost:
        try:
            await call(self.store)
        except _Explained as explained:
            return explained.cost
        raise AssertionError("It runs no statement.")

    async def fetch(
        self, statement: Statement, *args: Any, timeout: float | None = None
    ) -> Sequence[Sequence[Any]]:
        """Run the statement, and raise what it has cost."""
        name = await self._name_of(statement)
        values = ", ".join(map(_literal, args))
        transaction = self._connection.transaction()
        await transaction.start()
        try:
            text = await self._connection.fetchval(
                f'EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE "{name}" ({values})', timeout=600
            )
        finally:
            await transaction.rollback()
        found = json.loads(text)[0]
        plan = found["Plan"]
        raise _Explained(
            Cost(found["Execution Time"], plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])
        )

    async def _name_of(self, statement: Statement) -> str:
        if statement.sql not in self._prepared:
            name = f"explained_{len(self._prepared)}"
            # Kept, because asyncpg closes what nobody holds.
            self._prepared[statement.sql] = await self._connection.prepare(statement.sql, name=name)
        return self._prepared[statement.sql].get_name()


def _literal(value: Any) -> str:
    if isinstance(value, list | tuple):
        items = ("NULL" if item is None else '"{}"'.format(str(item).replace('"', '\\"')) for item in value)
        return f"'{{{','.join(items)}}}'"
    return "NULL" if value is None else "'{}'".format(str(value).replace("'", "''"))
