"""In strict order a task begins only when the one before is final, whoever claims; and these tests would see
it if it didn't."""

import pytest

from .lines import MUTANTS, run_lines

pytestmark = pytest.mark.asyncio(loop_factories=["uvloop"])  # the server doesn't know the loop


async def test_lines_keep_their_order(database: str) -> None:
    seen = await run_lines(lines=10, length=12)
    assert seen.violations == []
    assert min(seen.retries, seen.stops) > 0, seen


@pytest.mark.parametrize("mutant", MUTANTS)
async def test_without_a_part_of_the_claim_the_order_is_lost(database: str, mutant: str) -> None:
    seen = await run_lines(lines=5, length=10, texts={"claim_keyed": MUTANTS[mutant]})
    assert seen.violations, seen


@pytest.mark.battery
@pytest.mark.parametrize("seed", range(4))
async def test_many_lines_keep_their_order(database: str, seed: int) -> None:
    seen = await run_lines(lines=40, length=30, seed=seed)
    print(seen)  # noqa: T201  # the figures
    assert seen.violations == []
