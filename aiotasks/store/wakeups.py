"""Wake-ups: what NOTIFY tells workers.

On the channel that all workers LISTEN on, a payload is a JSON list ``[backend, queue_name, due]``: the queue
has READY tasks, or a task that is due at ``due`` (seconds since the epoch). With a fourth item, true, a
running task is to be cancelled.

On the channel of one worker it is ``[backend, queue_name, lane, passed, place]``: READY tasks of one lane.
So many workers have passed the wake-up on; of the two that it goes to, the worker is the first or the second.

Any role that can connect may listen, so a payload holds nothing else.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from ..rows import Job, Lane, NewJob, Status

__all__ = ["ANY_QUEUE", "CHANNEL", "Wakeup", "cancel_wakeups", "read_payload", "wakeups_of"]

CHANNEL = "aiotasks"

# The queue name of a wake-up for all queues. No queue has it.
ANY_QUEUE = ""


@dataclass(frozen=True, slots=True)
class Wakeup:
    """READY tasks in a queue; with ``due``, one scheduled for then; with ``cancel``, one to cancel.

    lane: the lane of the READY tasks, if only two workers are to be woken. passed: how many workers have
    passed it on, and sender, the channel of the last of them. place: on arrival, whether this worker is the
    first (1) or the second (2) of the two.
    """

    backend: str
    queue_name: str
    due: float | None = None
    cancel: bool = False
    lane: Lane | None = None
    passed: int = 0
    sender: str | None = None
    place: int = 0

    def payload(self) -> str:
        """Return the payload for the channel of all workers."""
        return json.dumps([self.backend, self.queue_name, self.due, *([True] if self.cancel else [])])


def read_payload(payload: str) -> Wakeup | None:
    """Read a payload; None if it isn't one of aiotasks (any role may notify on the channel)."""
    try:
        match json.loads(payload):
            case [str(backend), str(queue_name), (None | float() | int()) as due]:
                return Wakeup(backend, queue_name, due)
            case [str(backend), str(queue_name), None, True]:
                return Wakeup(backend, queue_name, cancel=True)
            case [
                str(backend),
                str(queue_name),
                ("loop" | "thread") as lane,
                int(passed),
                (1 | 2) as place,
            ] if passed >= 0:
                return Wakeup(backend, queue_name, lane=lane, passed=passed, place=place)
    except (ValueError, RecursionError):
        pass
    return None


def wakeups_of(jobs: Iterable[NewJob]) -> list[Wakeup]:
    """One wake-up a queue and lane, and one a queue with the earliest due time of its scheduled tasks."""
    ready: set[tuple[str, str, Lane]] = set()
    due: dict[tuple[str, str], float] = {}
    for kind in {id(job.template): job.template for job in jobs}.values():
        if kind.run_after is None:
            ready.add((kind.backend, kind.queue_name, kind.lane))
        else:
            key = (kind.backend, kind.queue_name)
            at = kind.run_after.timestamp()
            due[key] = min(at, due.get(key, at))
    return [
        *(Wakeup(backend, name, lane=lane) for backend, name, lane in ready),
        *(Wakeup(*key, at) for key, at in due.items()),
    ]


def cancel_wakeups(jobs: Iterable[Job]) -> list[Wakeup]:
    """Wake-ups for the owners of the jobs that are RUNNING."""
    return [Wakeup(job.backend, job.queue_name, cancel=True) for job in jobs if job.status == Status.RUNNING]
