"""The driver of a drain: over the connection that the test's own code would use."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from django.db import connections, transaction, utils

from ..conf import Options
from ..db.drivers import DjangoDriver, Driver, Row
from ..db.statement import Statement
from ..store.blocks import belongs_to_django
from ..store.loop import resources
from ..store.transaction import current_transaction
from ..sync import drive
from .thread import TestThread

__all__ = ["Watched", "driver_of"]


class _WaitingDriver:
    """DjangoDriver, on the thread that waits for the drain: inside its open transaction.

    Each statement has a savepoint there, so that another can follow one that is refused (for a value, by a
    trigger of the site).
    """

    def __init__(self, alias: str, thread: TestThread) -> None:
        self._alias = alias
        self._driver = DjangoDriver(alias)
        self._thread = thread

    async def fetch(self, statement: Statement, *args: Any, timeout: float | None = None) -> Sequence[Row]:
        def fetch() -> Sequence[Row]:
            is_open = connections[self._alias].in_atomic_block
            with transaction.atomic(using=self._alias) if is_open else nullcontext():
                return drive(self._driver.fetch(statement, *args))

        return await self._thread.run(fetch)


class Watched:
    """A driver that keeps its last error, for the message about a drain that doesn't end."""

    def __init__(self, driver: Driver) -> None:
        self.error: utils.Error | None = None
        self._driver = driver

    async def fetch(self, statement: Statement, *args: Any, timeout: float | None = None) -> Sequence[Row]:
        try:
            rows = await self._driver.fetch(statement, *args, timeout=timeout)
        except utils.Error as error:
            self.error = error
            raise
        self.error = None
        return rows


def driver_of(options: Options, thread: TestThread) -> Driver:
    if belongs_to_django(options.database):
        return _WaitingDriver(options.database, thread)
    if (block := current_transaction(options.database)) is not None:
        return block.store.driver
    return resources(options).store.driver
