"""The base of the classes that hold statements: one thin method a statement, over one driver."""

from collections.abc import Sequence
from typing import Any

from ..db.drivers import Driver
from .statements import load

__all__ = ["StatementGroup", "first_if_all_alike", "milliseconds", "none_if_all_null"]


class StatementGroup:
    """Statements of ``queries/`` about one subject. Times are in seconds."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    async def _fetch(self, name: str, *args: Any, timeout: float | None = None) -> Sequence[Sequence[Any]]:
        return await self.driver.fetch(load(name), *args, timeout=timeout)


def first_if_all_alike[Value](values: list[Value]) -> list[Value]:
    """Return one value in place of many that are the same, because every value of an array costs 0.3 µs."""
    return values[:1] if values.count(values[0]) == len(values) else values


def none_if_all_null[Value](values: list[Value]) -> list[Value]:
    """Return no value in place of NULLs alone, for an array that may be shorter than the others."""
    return [] if values.count(None) == len(values) else values  # type: ignore[arg-type]  # it may be in any list


def milliseconds(seconds: float) -> str:
    """A value for lock_timeout. Not 0, which means forever."""
    return f"{max(1, round(seconds * 1000))}ms"
