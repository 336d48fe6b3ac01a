"""Limits are never exceeded, whoever claims and whatever happens to tasks; and these tests would see it."""

import pytest

from .hammer import KEYS, MUTANTS, OVER_EAGER, hammer, write_rows_of_keys

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])  # the server doesn't know the loop


async def test_twenty_sessions_exceed_no_limit(database: str) -> None:
    seen = await hammer(claims=1_500)
    assert (seen.over, seen.errors) == (0, {}), seen
    assert seen.most == KEYS, seen  # what is allowed was used
    assert seen.states["busy"] > 0, seen


@pytest.mark.parametrize("mutant", MUTANTS)
async def test_without_a_part_of_the_claim_limits_are_exceeded(database: str, mutant: str) -> None:
    seen = await hammer(claims=100_000, until_over=True, texts={"claim_keyed": MUTANTS[mutant]})
    assert seen.over > 0, seen


async def test_who_writes_rows_of_keys_never_waits_in_a_circle(database: str) -> None:
    assert await write_rows_of_keys(seconds=2.0) == {}


@pytest.mark.battery
@pytest.mark.parametrize("seed", range(3))
async def test_many_claims_exceed_no_limit(database: str, seed: int) -> None:
    seen = await hammer(claims=20_000, seed=seed, timeout=600.0)
    print(seen)  # noqa: T201  # the figures
    assert (seen.over, seen.errors) == (0, {})


@pytest.mark.battery
async def test_many_claims_beside_a_pruner_that_is_over_eager(database: str) -> None:
    """It deletes rows of keys that were claimed just before: rows are made again all the time."""
    seen = await hammer(claims=10_000, texts={"prune_limits": OVER_EAGER}, timeout=600.0)
    print(seen)  # noqa: T201  # the figures
    assert (seen.over, seen.errors) == (0, {})
    assert seen.states["new"] > 0


@pytest.mark.battery
@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
async def test_many_claims_in_other_isolation(database: str, isolation: str) -> None:
    """They may be refused as a whole, which is an error of its own."""
    seen = await hammer(claims=5_000, isolation=isolation, timeout=600.0)
    print(seen)  # noqa: T201  # the figures
    assert seen.over == 0
    assert seen.errors.keys() <= {"40001"}
