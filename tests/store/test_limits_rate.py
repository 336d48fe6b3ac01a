"""In no window there are more starts than its rate and its burst allow, however many claim."""

import pytest

from aiotasks.store.limits import LimitRule

from .rates import excess, starts_of

# The server doesn't know the loop.
one_loop = pytest.mark.asyncio(loop_factories=["uvloop"])

# The times are read as microseconds.
ROUNDING = 1e-3


def test_the_excess_of_a_window() -> None:
    assert excess([0.0, 0.0, 0.0], 1.0, 3) == 0
    assert excess([0.0, 1.0, 2.0, 3.0], 1.0, 1) == 0
    assert excess([0.0, 1.0, 1.5, 3.0], 1.0, 1) == 0.5
    assert excess([0.0, 10.0, 10.0, 10.0, 11.0], 1.0, 2) == 1


@one_loop
@pytest.mark.parametrize(("pace", "burst"), [(0.1, 1), (0.02, 5)])
async def test_no_window_has_too_many_starts(database: str, pace: float, burst: int) -> None:
    started = await starts_of(LimitRule("l", pace=pace, burst=burst), 2.0)
    assert len(started) > burst
    assert excess(started, pace, burst) <= ROUNDING


@one_loop
@pytest.mark.battery
@pytest.mark.parametrize(
    ("rate", "burst"), [(0.5, 1), (5.0, 1), (20.0, 5), (100.0, 1), (100.0, 20), (300.0, 30)]
)
async def test_no_window_of_a_minute_has_too_many_starts(database: str, rate: float, burst: int) -> None:
    seconds = 60.0
    started = await starts_of(LimitRule("l", pace=1 / rate, burst=burst), seconds)
    worst = excess(started, 1 / rate, burst)
    used = len(started) / (rate * seconds + burst)
    print(f"{rate}/s, burst {burst}: {len(started)} starts, {used:.1%} used, worst window {worst:+.4f}")  # noqa: T201  # the figures
    assert worst <= ROUNDING
