"""Tasks with policies, of the site's tests that run without PostgreSQL."""

import asyncio
from datetime import timedelta
from typing import Any

import aiotasks
from aiotasks import task

calls: list[Any] = []


def half_a_second(exception: BaseException, result: Any) -> float | None:
    calls.append(("backoff", type(exception), result.attempts))
    return 0.5


def no_more(exception: BaseException, result: Any) -> float | None:
    return None


@task(max_attempts=3, backoff=half_a_second)
def third_time(name: str = "") -> str:
    calls.append(name)
    if len([call for call in calls if call == name]) < 3:
        raise LookupError(name)
    return name


@task(max_attempts=3)
async def always_fails() -> None:
    calls.append("always")
    raise LookupError("always")


@task(max_attempts=5, backoff=no_more)
def stopped_by_backoff() -> None:
    raise LookupError


@task(max_attempts=5, retry_on=OSError)
def not_retried() -> None:
    raise LookupError


@task(max_attempts=5, give_up_on=(LookupError,))
def given_up_on() -> None:
    raise KeyError("a subclass")


@task(max_attempts=5)
def gives_up() -> None:
    raise aiotasks.GiveUp("pointless")


@task(max_attempts=2, retry_on=OSError)
def asks_again() -> None:
    raise aiotasks.Retry(after=timedelta(hours=1))


@task
def snoozes() -> None:
    raise aiotasks.Snooze(for_=60)


@task(timeout=0.01)
async def too_slow() -> None:
    await asyncio.Event().wait()


@task(timeout=60)
async def own_timeout() -> None:
    raise TimeoutError("its own")


@task(timeout=timedelta(seconds=60), takes_context=True)
async def attempt_number(context: Any) -> int:
    assert 0 < context.remaining() <= 60
    assert context.deadline is not None
    assert not context.is_cancelled()
    return int(context.attempt)


@task(unique_key="one", expires=60, keep_result=5, max_crashes=1)
def one() -> None:
    pass


def key_of(name: str) -> str | None:
    return f"of {name}" if name else None


@task(unique_key=key_of)
def by_name(name: str) -> None:
    pass


@task(unique_key="strict", on_conflict="raise")
def strict() -> None:
    pass


@task(unique_key="latest", on_conflict="replace")
def latest(value: int) -> None:
    pass


@task(unique_key="throttled", on_conflict="replace", keep_run_after=True)
def throttled(value: int) -> None:
    pass


@task(unique_key="hourly", unique_for=timedelta(hours=1))
def hourly() -> None:
    pass


@task(unique_key="itself")
def enqueues_itself(deep: bool = True) -> list[Any]:
    calls.append("itself")
    if not deep:
        return []
    inner = enqueues_itself.using(backend="immediate").enqueue(False)
    return [inner.id, inner.is_duplicate]


def _once_more(of: Any, deep: bool) -> list[bool]:
    calls.append("follow-up")
    return [of.using(backend="immediate").enqueue(False).is_duplicate] if deep else []


@task(unique_key="follow-up", unique_for="waiting")
def follows_up(deep: bool = True) -> list[bool]:
    return _once_more(follows_up, deep)


@task(unique_key="replaces itself", on_conflict="replace")
def replaces_itself(deep: bool = True) -> list[bool]:
    return _once_more(replaces_itself, deep)


def odd_key(value: Any) -> Any:
    if value == "raise":
        raise KeyError(value)
    return value


@task(unique_key=odd_key)
def odd(value: Any) -> None:
    pass


@task(max_attempts=3)
def returns_a_set() -> set[int]:
    calls.append("set")
    return {1}


@task
def raises() -> None:
    raise RuntimeError("as always")


# --- Metadata


def _see_metadata(exception: BaseException, result: Any) -> float:
    calls.append(without_progress(result.metadata))
    return 0.0


def without_progress(metadata: dict[str, Any]) -> dict[str, Any]:
    return {key: metadata[key] for key in metadata if key not in ("progress", "saved")}


def _notes(context: Any) -> list[dict[str, Any]]:
    found = without_progress(context.metadata)
    context.metadata["attempts"] = context.attempt
    context.save_metadata()
    context.task_result.task.get_backend().save_metadata(context.task_result.id, {"saved": "by an id"})
    for number in range(100):
        context.progress(number, 100)
    if context.attempt == 1:
        raise LookupError
    return [found, {"given": found["given"]}]


@task(takes_context=True, max_attempts=2, backoff=_see_metadata)
async def notes(context: Any, attempts: int) -> list[dict[str, Any]]:
    return _notes(context)


@task(takes_context=True, max_attempts=2, backoff=_see_metadata)
def notes_sync(context: Any, attempts: int) -> list[dict[str, Any]]:
    return _notes(context)


@task(takes_context=True)
def notes_badly(context: Any) -> int:
    context.metadata["good"] = 1
    context.save_metadata()
    context.metadata["bad"] = object()
    return 1


# --- Limits


tenant = aiotasks.Limit("tests.tenant", by="tenant_id", concurrency=3)


@task(limit=tenant)
def of_tenant(tenant_id: Any) -> Any:
    calls.append(tenant_id)
    return tenant_id
