"""The page on schedules, with a worker: what the code declares is ticked, and what operators do holds."""

import pytest
from asgiref.sync import sync_to_async

import aiotasks
from aiotasks.conf import Options
from aiotasks.operations.schedules import alist_schedules, arun_schedule
from aiotasks.schedules import declarations
from tests.examples import example
from tests.site import postgres_result

from .harness import Configure, until


@pytest.fixture(autouse=True)
def entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's own schedules, and none for other tests."""
    monkeypatch.setattr(declarations, "_entries", {})


async def test_the_page_on_schedules(configure: Configure) -> None:
    with example("howto/schedules.md") as page:
        for _ in range(3):
            await page.run()
        name = page.__name__
        configure(SCHEDULES=[name])
        async with aiotasks.Worker(grace=5):
            await until(lambda: has_schedules(5))
            found = {each.name: each for each in await alist_schedules()}
            assert set(found) == {
                f"{name}.send_reports",
                f"{name}.refresh_offers",
                "summary",
                "urgent",
                "hourly sums",
            }
            assert found[f"{name}.send_reports"].words == "at 03:00 every day"
            assert found[f"{name}.refresh_offers"].next[0].minute % 5 == 0
            assert (found["urgent"].args, found["urgent"].priority) == (["urgent"], 50)
            assert found["summary"].kwargs == {"kind": "summary"}
            result = postgres_result(await arun_schedule("hourly sums"))
            await result.ajoin(timeout=30)
            schedule, hour = result.return_value
            assert schedule == "hourly sums"
            assert hour == result.raw_metadata["_scheduled_for"]
            await page.run()
            assert Options.from_params("default", page.TASKS["default"]).schedules
            await page.run()
            by_hand, states = await sync_to_async(page.look_after)()
            assert by_hand.task.module_path == f"{name}.refresh_offers"
            assert states["refresh"][0] == "every 90 seconds"
            assert page.blocks == []


async def has_schedules(number: int) -> bool:
    return len(await alist_schedules()) == number
