"""Check ``versions``: workers run, and have the version that is installed here."""

from collections import Counter

from ... import __version__
from .examination import Examination
from .finding import Result

__all__ = ["check"]


async def check(examination: Examination) -> Result:
    """Return whether workers run, and whether they have the version that is installed here."""
    if examination.workers is None:
        return "not checked", "The workers' rows can't be read.", ""
    alive = examination.live_workers()
    if not alive:
        return (
            "warning",
            f"No worker of {examination.alias!r} has a live lease: nothing runs.",
            f"Start one: `manage.py aiotasks worker --backend {examination.alias}`.",
        )
    versions = Counter(worker.version for worker in alive)
    versions_found = ", ".join(f"{version} ({number})" for version, number in sorted(versions.items()))
    if versions.keys() != {__version__}:
        return (
            "warning",
            f"The workers' versions are {versions_found}, and {__version__} is installed here.",
            "Fine during a deploy; after it, restart the workers that were left behind.",
        )
    return "ok", f"All workers have this version: {versions_found}.", ""
