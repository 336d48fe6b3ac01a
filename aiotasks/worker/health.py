"""Health: whether a worker works, for probes and process managers. Plain reads, for any thread."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .worker import Worker

__all__ = ["LIVE_WITHIN", "Health", "health_of"]

# Seconds within which an event loop must have run to count as live. Chosen: twelve times the five seconds for
# which a task may block it by mistake, and well below LOOP_TIMEOUT (300), at which the worker ends itself.
LIVE_WITHIN = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """live: the worker's event loop has run within LIVE_WITHIN.
    ready: the worker has a lease that was renewed at the last try, and claims tasks.
    reasons: why it isn't ready; empty if it is.
    status_line: what it does, in one line.
    """

    live: bool
    ready: bool
    reasons: tuple[str, ...]
    status_line: str


def health_of(worker: "Worker", *, stopping: bool) -> Health:
    """Return the worker's health; ``stopping``: it claims no more tasks."""
    reasons = ["the worker is stopping"] if stopping else []
    if not hasattr(worker, "engine"):
        reasons.append("the database has not been reached")
        return Health(live=True, ready=False, reasons=tuple(reasons), status_line=reasons[0])
    engine = worker.engine
    lease, remaining = engine.lease, engine.lease.remaining()
    if lease.worker_id is None or remaining <= 0:
        reasons.append("it has no lease")
    elif lease.steady_since is None:
        reasons.append("the last renewal of its lease has failed")
    slots = engine.slots
    status = (
        f"running {slots.taken('loop') + slots.taken('thread')} of {slots.total}, "
        f"lease {max(0.0, remaining):.0f} s, "
        f"wake-ups by {'LISTEN' if engine.waker.is_woken() else 'polling'}"
    )
    return Health(
        live=time.monotonic() - engine.watchdog.last_beat <= LIVE_WITHIN,
        ready=not reasons,
        reasons=tuple(reasons),
        status_line="; ".join([*reasons, status]),
    )
