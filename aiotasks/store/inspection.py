"""Statements that `status` and `check` read: tasks, workers, the server, and the session itself."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from .row_security import Restriction
from .statement_group import StatementGroup

__all__ = ["InspectionStatements"]


class InspectionStatements(StatementGroup):
    """Read only: counts, ages, settings and privileges."""

    async def list_waiting(self, limit: int) -> list[tuple[str, str, str]]:
        """The backends, queues and lanes that have READY tasks."""
        return [(row[0], row[1], row[2]) for row in await self._fetch("list_waiting", limit)]

    async def count_ready_jobs(
        self, backend: str, queues: Sequence[str], limit: int
    ) -> dict[str, tuple[int, float | None]]:
        """By queue: how many, counted up to ``limit``, and the age of the oldest (None: there is none)."""
        rows = await self._fetch("count_ready_jobs", backend, list(queues), limit)
        return {row[0]: (row[1], row[2]) for row in rows}

    async def count_scheduled_jobs(self, backend: str, limit: int) -> Counter[str]:
        rows = await self._fetch("count_scheduled_jobs", backend, limit)
        return Counter({row[0]: row[1] for row in rows})

    async def count_running_jobs(self, backend: str, limit: int) -> dict[tuple[str, UUID | None, str], int]:
        """By queue name, worker id and lane."""
        rows = await self._fetch("count_running_jobs", backend, limit)
        return {(row[0], row[1], row[2]): row[3] for row in rows}

    async def count_failed_jobs(self, backend: str, limit: int) -> tuple[int, int, bool]:
        """How many FAILED in the last hour and in the last day, counted up to ``limit``; whether that is
        all of those with a ``keep_result``."""
        ((hour, day, complete),) = await self._fetch("count_failed_jobs", backend, limit)
        return hour, day, complete

    async def oldest_running_job(
        self, backend: str, limit: int
    ) -> tuple[UUID, str, UUID | None, float] | None:
        """Its id, path and worker, and for how many seconds it has run."""
        rows = await self._fetch("oldest_running_job", backend, limit)
        return (rows[0][0], rows[0][1], rows[0][2], rows[0][3]) if rows else None

    async def notify_queue(self) -> tuple[float, int | None, str | None, float | None]:
        """How full NOTIFY's queue is, from 0 to 1; the session with the oldest transaction, what it is, and
        the transaction's age in seconds."""
        (row,) = await self._fetch("notify_queue")
        return row[0], row[1], row[2], row[3]

    async def select_workers(self, backend: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await self._fetch("select_workers", backend)]

    async def oldest_snapshot(self) -> tuple[bool, tuple[str, str, int, float | None] | None]:
        """Whether all were seen; the holder's template and name, and its age in transactions and, where
        known, in seconds."""
        (row,) = await self._fetch("oldest_snapshot")
        return row[0], None if row[1] is None else (row[1], row[2], row[3], row[4])

    async def inspect_server(self) -> tuple[int, bool, bool, int, int, int]:
        """Version number, whether it is read-only, whether autovacuum runs; connections allowed to us, to
        everybody, and open."""
        (row,) = await self._fetch("inspect_server")
        return row[0], row[1], row[2], row[3], row[4], row[5]

    async def describe_session(self) -> tuple[Any, ...]:
        """What session.Session has."""
        (row,) = await self._fetch("describe_session")
        return tuple(row)

    async def select_migrations(self) -> set[str]:
        """The names of those that have been applied."""
        return {row[0] for row in await self._fetch("select_migrations")}

    async def select_indexes(self) -> set[str]:
        """The names of those of the tasks' table that serve."""
        return {row[0] for row in await self._fetch("select_indexes")}

    async def select_rights(self) -> tuple[str, set[str] | None, list[str]]:
        """The role, as an identifier; its rights, each as ``SELECT ON aiotasks_task`` (None: it finds no
        tables); the schemas that have tables, whether it finds them there or not."""
        (row,) = await self._fetch("select_rights")
        return row[0], None if row[1] is None else set(row[1]), list(row[2])

    async def select_row_security(self) -> list[Restriction]:
        """What row-level security doesn't let this role do with every row."""
        return [Restriction(*row) for row in await self._fetch("select_row_security")]

    async def select_storage(self) -> dict[str, list[str]]:
        """By table: its storage parameters, each as ``name=value``."""
        return {row[0]: row[1] for row in await self._fetch("select_storage")}

    async def read_clock(self) -> datetime:
        (row,) = await self._fetch("read_clock")
        return row[0]  # type: ignore[no-any-return]  # rows are of Any

    async def backend_pid(self) -> int:
        (row,) = await self._fetch("backend_pid")
        return int(row[0])

    async def wait_for_standbys(self, *, timeout: float | None = None) -> None:
        await self._fetch("wait_for_standbys", timeout=timeout)
