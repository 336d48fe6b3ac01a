"""Sites and workers of older releases, as far as the database sees them."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID, uuid4

import asyncpg
import pytest
from uuid_utils import uuid7

from tests.store.rows import EVER

__all__ = ["ADD", "RELEASES", "Release", "Release0001", "Release0007"]

ADD = "tests.worker.tasks.add"


class Release:
    """The release whose newest migration has the number in its name. Its statements are kept as they were.

    claims: by task, the claim id under which it has claimed the task last.
    """

    folder: ClassVar[str]

    def __init__(self, conn: asyncpg.Connection) -> None:
        self.conn = conn
        self.worker_id = uuid4()
        self.claims: dict[UUID, UUID] = {}

    @classmethod
    def statement(cls, name: str) -> str:
        text = (Path(__file__).parent / cls.folder / f"{name}.sql").read_text()
        return "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))

    async def fetch(self, name: str, *args: Any) -> list[Any]:
        return list(await self.conn.fetch(self.statement(name), *args))

    async def enqueue(self, *args: int, path: str = ADD) -> str:
        id = str(uuid7())
        row = (id, "default", "default", path, "loop", 0, str(list(args)), "{}", datetime.now(UTC), None)
        await self.fetch("insert_job", *row, *self._policy())
        return id

    async def enqueue_many(self, number: int, *args: int, path: str = ADD) -> list[str]:
        ids = [str(uuid7()) for _ in range(number)]
        same = ([str(list(args or (1, 2)))] * number, ["{}"] * number, [1], [datetime.now(UTC)])
        template = (["default"], ["default"], [path], ["loop"], [0], [None])
        await self.fetch("insert_jobs", ids, *same, *template, *([value] for value in self._policy()))
        return ids

    async def register(self) -> None:
        raise NotImplementedError

    async def claim(self, limit: int = 100) -> list[UUID]:
        """Ids of tasks of both lanes, at most so many of each."""
        claim_id = uuid4()
        lane = (["default"], [EVER], limit, False)
        rows = await self.fetch("claim_jobs", self.worker_id, claim_id, "default", *lane, *lane)
        ids = [row[0] for row in rows]
        self.claims |= dict.fromkeys(ids, claim_id)
        return ids

    async def finish(self, ids: Sequence[UUID], error: str | None = None) -> int:
        """Until all are: a row that another worker's claim looks at just then is passed over.

        An AssertionError: it isn't this worker's any more.
        """
        left = sorted(ids)
        while left:
            done = set(await self.try_to_finish(left, error))
            left = [id for id in left if id not in done]
            if left and not done:
                query = "SELECT id FROM aiotasks_task WHERE id = ANY($1) AND status <> 'RUNNING'"
                assert not await self.conn.fetch(query, left), "another has ended the task"
        return len(ids)

    async def try_to_finish(self, ids: Sequence[UUID], error: str | None = None) -> list[UUID]:
        """The ids of those that are; FAILED with ``error``, or SUCCESSFUL without one."""
        number = len(ids)
        outcome = ("SUCCESSFUL", "3", None) if error is None else ("FAILED", None, error)
        columns = ([value] * number for value in outcome)
        rows = await self.fetch("finish_jobs", list(ids), [self.claims[id] for id in ids], *columns)
        return self._finished(rows)

    async def release(
        self, ids: Sequence[UUID], delay: float = 0.0, window: float | None = None
    ) -> list[UUID]:
        """Give these back; with a window, as unknown ones. The ids of those that are READY or SCHEDULED."""
        claim_ids = [self.claims[id] for id in ids]
        rows = await self.fetch("release_jobs", list(ids), claim_ids, [delay] * len(ids), [window] * len(ids))
        return [row[0] for row in rows if row[1] is not None]

    def _policy(self) -> Sequence[Any]:
        """The values of a task without policies."""
        raise NotImplementedError

    def _finished(self, rows: list[Any]) -> list[UUID]:
        raise NotImplementedError


class Release0001(Release):
    folder = "release_0001"

    async def register(self) -> None:
        await self.fetch("register_worker", self.worker_id, "default", "host", 1, [], 10, 10, "0001", 60.0)

    def _policy(self) -> Sequence[Any]:
        return (None,)

    def _finished(self, rows: list[Any]) -> list[UUID]:
        return [row[0] for row in rows]


class Release0007(Release):
    """The last one without retries, expiry, unique keys, bulk actions and pauses."""

    folder = "release_0007"

    async def register(self) -> None:
        slots: tuple[Any, ...] = ([], 10, 10)
        await self.fetch("register_worker", self.worker_id, "default", "host", 1, *slots, "0007", 60.0, None)

    def _policy(self) -> Sequence[Any]:
        return (None, None)

    def _finished(self, rows: list[Any]) -> list[UUID]:
        return list(rows[0][0])


RELEASES = pytest.mark.parametrize("kind", [Release0001, Release0007])
