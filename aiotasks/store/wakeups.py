"""Wake-ups: what NOTIFY tells workers.

On the channel that all workers LISTEN on, a payload is a JSON list ``[backend, queue_name, due]``: the queue
has READY tasks, or a task that is due at ``due`` (seconds since the epoch). With a fourth item, true, a
running task is to be cancelled.

On the channel of one worker it is ``[backend, queue_name, lane, passed, place]``: READY tasks of one lane.
So many workers have passed the wake-up on; of the two that it goes to, the worker is the first or the second.

Of tasks with limits the lane is ``loop+`` or ``thread+``, and on the common channel the fourth item is
``"keyed"``: workers of a release without limits ignore it. It names no key.

Any role that can connect may listen, so a payload holds nothing else.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from ..rows import LANES, Job, Lane, NewJob, Status, StoredLane, keyed_lane, plain_lane

__all__ = [
    "ANY_QUEUE",
    "CHANNEL",
    "Wakeup",
    "cancel_wakeups",
    "read_payload",
    "wakeup_again",
    "wakeup_in",
    "wakeups_again",
    "wakeups_of",
]

CHANNEL = "aiotasks"

# The queue name of a wake-up for all queues. No queue has it.
ANY_QUEUE = ""


@dataclass(frozen=True, slots=True)
class Wakeup:
    """READY tasks in a queue; with ``due``, one scheduled for then; with ``cancel``, one to cancel; with
    ``keyed``, tasks that have limits.

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
    keyed: bool = False

    @property
    def stored_lane(self) -> StoredLane | None:
        """The lane as rows store it."""
        return keyed_lane(self.lane) if self.keyed and self.lane is not None else self.lane

    def payload(self) -> str:
        """Return the payload for the channel of all workers."""
        more: list[bool | str] = [True] if self.cancel else ["keyed"] if self.keyed else []
        return json.dumps([self.backend, self.queue_name, self.due, *more])


def read_payload(payload: str) -> Wakeup | None:
    """Read a payload; None if it isn't one of aiotasks (any role may notify on the channel)."""
    try:
        match json.loads(payload):
            case [str(backend), str(queue_name), (None | float() | int()) as due]:
                return Wakeup(backend, queue_name, due)
            case [str(backend), str(queue_name), None, True]:
                return Wakeup(backend, queue_name, cancel=True)
            case [str(backend), str(queue_name), None, "keyed"]:
                return Wakeup(backend, queue_name, keyed=True)
            case [
                str(backend),
                str(queue_name),
                ("loop" | "thread" | "loop+" | "thread+") as stored,
                int(passed),
                (1 | 2) as place,
            ] if passed >= 0:
                return Wakeup(
                    backend,
                    queue_name,
                    lane=plain_lane(stored),
                    passed=passed,
                    place=place,
                    keyed=stored not in LANES,
                )
    except (ValueError, RecursionError):
        pass
    return None


def wakeups_of(jobs: Iterable[NewJob]) -> list[Wakeup]:
    """One wake-up a queue and lane, with and without limits, and one a queue with the earliest due time of
    its scheduled tasks.
    """
    ready: set[tuple[str, str, Lane, bool]] = set()
    due: dict[tuple[str, str], float] = {}
    kinds = {(id(job.template), job.limit_key is not None): job.template for job in jobs}
    for (_, keyed), kind in kinds.items():
        if kind.run_after is None:
            ready.add((kind.backend, kind.queue_name, kind.lane, keyed))
        else:
            key = (kind.backend, kind.queue_name)
            at = kind.run_after.timestamp()
            due[key] = min(at, due.get(key, at))
    return [
        *(Wakeup(backend, name, lane=lane, keyed=keyed) for backend, name, lane, keyed in ready),
        *(Wakeup(*key, at) for key, at in due.items()),
    ]


def wakeup_in(backend: str, queue_name: str, stored_lane: str) -> Wakeup:
    """The wake-up for READY tasks of a lane, as it is stored."""
    return Wakeup(backend, queue_name, lane=plain_lane(stored_lane), keyed=stored_lane not in LANES)


def wakeups_again(jobs: Iterable[Job]) -> list[Wakeup]:
    """Wake-ups for those of the jobs that are READY again: one a queue, or a lane of tasks with limits."""
    return list(dict.fromkeys(wakeup_again(job) for job in jobs if job.status == Status.READY))


def wakeup_again(job: Job) -> Wakeup:
    """The wake-up for a job that is READY again: for all workers, or for two if it has a limit."""
    if job.limit_key is None:
        return Wakeup(job.backend, job.queue_name)
    return Wakeup(job.backend, job.queue_name, lane=job.lane, keyed=True)


def cancel_wakeups(jobs: Iterable[Job]) -> list[Wakeup]:
    """Wake-ups for the owners of the jobs that are RUNNING; and for tasks behind those with limits that have
    ended, because one that waited for a retry may have held its line.
    """
    return list(dict.fromkeys(each for job in jobs if (each := _after_cancel(job)) is not None))


def _after_cancel(job: Job) -> Wakeup | None:
    if job.status == Status.RUNNING:
        return Wakeup(job.backend, job.queue_name, cancel=True)
    return None if job.limit_key is None else wakeup_again(job)
