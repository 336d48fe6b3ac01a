"""Check ``clock``: the database's clock and this host's agree."""

import time

from ...store.store import Store
from .examination import Examination
from .finding import Result

__all__ = ["check", "clock_difference"]

# Seconds. Leases go by the database's clock alone, but `run_after` comes from the sites' clocks.
CLOCK_DIFFERENCE = 1.0


async def check(examination: Examination) -> Result:
    """Return whether the database's clock and this host's agree."""
    difference, doubt = await clock_difference(examination.store)
    if abs(difference) - doubt > CLOCK_DIFFERENCE:
        order = "ahead of" if difference > 0 else "behind"
        return (
            "warning",
            f"The database's clock is {abs(difference):.1f} s {order} this host's: a `run_after` that is "
            "counted from here is due by that much early or late.",
            "Have both synchronised, by NTP for example.",
        )
    return "ok", f"The database's clock and this host's differ by {abs(difference) * 1000:.0f} ms.", ""


async def clock_difference(store: Store) -> tuple[float, float]:
    """Return by how many seconds the database's clock is ahead of this host's, and how exact that is."""
    best = (0.0, float("inf"))
    for _ in range(3):
        before = time.time()
        there = await store.read_clock()
        after = time.time()
        doubt = (after - before) / 2
        if doubt < best[1]:
            best = (there.timestamp() - (before + after) / 2, doubt)
    return best
