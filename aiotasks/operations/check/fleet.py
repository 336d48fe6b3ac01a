"""Check ``fleet``: how NOTIFY wakes the workers of all backends that share the database."""

from collections import Counter
from collections.abc import Iterable

from ...store.inspection import LiveWorkers
from .examination import Examination
from .finding import Result

__all__ = ["check", "judge_fleet"]


async def check(examination: Examination) -> Result:
    """Return how many workers are woken by name, how many by every NOTIFY, and how many poll."""
    if examination.fleet is None:
        return "not checked", "The workers' rows can't be read.", ""
    return judge_fleet(examination.fleet)


def judge_fleet(fleet: Iterable[LiveWorkers]) -> Result:
    """Return the result for the live workers of a database: a warning if some are of the release before."""
    backends: Counter[str] = Counter()
    old: Counter[str] = Counter()
    ways: Counter[str] = Counter()
    for workers in fleet:
        backends[workers.backend] += workers.number
        if workers.listening and not workers.has_channel:
            old[workers.backend] += workers.number
        ways[_way(workers)] += workers.number
    if not backends:
        return "ok", "No worker of any backend has a live lease.", ""
    message = (
        f"Live workers on this database: {backends.total():,}, of {_counted(backends)}. "
        f"NOTIFY: {', '.join(f'{number:,} {way}' for way, number in ways.items())}."
    )
    if not old:
        return "ok", message, ""
    return (
        "warning",
        f"{message} Because of the workers that have no channel of their own, of {_counted(old)}, every "
        "enqueue there wakes all workers instead of two.",
        "They are of the release before. Fine during a deploy; after it, restart the workers that were left "
        "behind.",
    )


def _way(workers: LiveWorkers) -> str:
    match workers.listening, workers.has_channel:
        case True, True:
            return "LISTEN on a channel of their own"
        case True, False:
            return "LISTEN on the common channel alone"
        case False, _:
            return "only poll"
    return "not known yet"


def _counted(backends: Counter[str]) -> str:
    return ", ".join(f"{backend!r} ({number:,})" for backend, number in sorted(backends.items()))
