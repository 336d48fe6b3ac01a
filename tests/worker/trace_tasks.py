"""Tasks that say which span is the current one in their bodies."""

from typing import Any

from opentelemetry import trace

import aiotasks
from aiotasks import PostgresTaskContext, backoff, task
from tests.site import Context

# (place, trace id, span id) of the current span, where a task or a receiver has asked for it.
seen: list[tuple[str, int, int]] = []


def see(place: str) -> None:
    context = trace.get_current_span().get_span_context()
    seen.append((place, context.trace_id, context.span_id))


@task
async def on_loop() -> None:
    see("on_loop")


@task
def in_thread() -> None:
    see("in_thread")


@task(takes_context=True)
async def tells_metadata(context: PostgresTaskContext) -> dict[str, Any]:
    return dict(context.metadata)


@task(max_attempts=2, backoff=backoff.constant(0.01, jitter=False), takes_context=True)
async def fails_once(context: Context) -> None:
    if context.attempt == 1:
        raise ValueError("secret: not yet")


@task
async def fails() -> None:
    raise LookupError("no such card")


@task(takes_context=True)
async def snoozes_once(context: PostgresTaskContext) -> None:
    if not context.metadata.get("snoozed"):
        context.metadata["snoozed"] = True
        raise aiotasks.Snooze(for_=0.001)


def hide(text: str) -> str:
    return text.replace("secret", "***")
