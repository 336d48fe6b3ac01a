"""READY tasks that nobody comes for: of a queue, a lane or a whole backend that no live worker serves."""

from collections.abc import Mapping, Sequence

from ..store.inspection import WaitingLane
from .findings import Result
from .status import WorkerRow

__all__ = ["LIMIT", "judge"]

# A site with a queue for each customer has thousands; the first by name are looked at.
LIMIT = 1_000

# More names than these don't help.
SHOWN = 5


def judge(
    waiting: Sequence[WaitingLane], workers: Mapping[str, Sequence[WorkerRow]], known: Sequence[str]
) -> Result:
    """The verdict for what is READY, as (backend, queue, lane).

    ``workers``: those of each backend; ``known``: the aliases of TASKS.
    """
    unserved = [
        (backend, queue, lane)
        for backend, queue, lane in waiting
        if not any(
            worker.alive and worker.serves(queue) and (worker.loop if lane == "loop" else worker.thread).slots
            for worker in workers[backend]
        )
    ]
    if not unserved:
        return "ok", "Every queue that has tasks has a worker for them.", ""
    names = [
        f"backend {backend!r}, queue {queue!r}, {'coroutine' if lane == 'loop' else 'sync'} tasks"
        for backend, queue, lane in unserved
    ]
    more = f"; and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    remedies = []
    if any(workers[backend] for backend, _, _ in unserved):
        remedies.append("Have a worker serve them: see its --queue, --concurrency and --threads.")
    remedies += [
        f"Start a worker: `manage.py aiotasks worker --backend {backend}`."
        if backend in known
        else f"TASKS has no backend {backend!r} any more: give it back its alias, or UPDATE the rows."
        for backend in dict.fromkeys(backend for backend, _, _ in unserved if not workers[backend])
    ]
    return (
        "warning",
        f"Tasks are READY that no live worker serves: {'; '.join(names[:SHOWN])}{more}.",
        " ".join(remedies),
    )
