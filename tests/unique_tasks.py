"""Tasks with unique keys. A worker finds them by their path, so they stand at module level."""

import asyncio

import aiotasks

__all__ = ["by_argument", "debounced", "follow", "once", "periodical", "refuse", "reindex", "throttled"]

# What has run, in this process.
ran: list[tuple[str, object]] = []
gate: list[asyncio.Event] = []


@aiotasks.task(unique_key="once")
async def once(value: object = None) -> None:
    ran.append(("once", value))


@aiotasks.task(unique_key=lambda key, *args, **kwargs: None if key is None else f"by argument {key}")
async def by_argument(key: object, value: object = None) -> None:
    ran.append((f"by argument {key}", value))


@aiotasks.task(unique_key="once a period", unique_for=3600)
def periodical() -> None:
    ran.append(("periodical", None))


@aiotasks.task(unique_key="refuse", on_conflict="raise")
async def refuse(value: object = None) -> None:
    ran.append(("refuse", value))


@aiotasks.task(unique_key=lambda key, value=None: f"follow {key}", unique_for="waiting")
async def follow(key: object, value: object = None) -> None:
    ran.append((f"follow {key}", value))
    if gate:
        await gate[-1].wait()


@aiotasks.task(unique_key=lambda key, value=None: f"debounced {key}", on_conflict="replace")
async def debounced(key: object, value: object = None) -> None:
    ran.append((f"debounced {key}", value))


@aiotasks.task(
    unique_key=lambda key, value=None: f"throttled {key}", on_conflict="replace", keep_run_after=True
)
async def throttled(key: object, value: object = None) -> None:
    ran.append((f"throttled {key}", value))


def _failing(value: object) -> str:
    if value == "TypeError":
        raise TypeError("no")
    if value == "KeyError":
        raise KeyError("no")
    return value  # type: ignore[return-value]  # that is the test


@aiotasks.task(unique_key=_failing)
async def reindex(value: object) -> None:
    ran.append(("reindex", value))
