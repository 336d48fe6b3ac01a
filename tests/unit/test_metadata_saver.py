"""MetadataSaver over a store whose answers are hypothesis': locks, outages, lost replies, others' writes,
fences.
"""

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.db import utils
from hypothesis import example, given
from hypothesis import strategies as st

from aiotasks.db.outage import Outage
from aiotasks.metadata.running import RunningMetadata
from aiotasks.metadata.values import merge, read_row
from aiotasks.store.metadata import MetadataAnswer, MetadataWrite
from aiotasks.worker.writing import metadata as saver_module
from aiotasks.worker.writing.metadata import MetadataSaver


@pytest.fixture(autouse=True, scope="module")
def quick() -> Iterator[None]:
    """Its pauses are turns of the loop."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("INTERVAL", "FIRST_LOCKED_DELAY", "LOCKED_DELAY"):
            patch.setattr(saver_module, name, 0.0)
        patch.setattr(Outage, "failed", lambda self, error: 0.0)
        yield


class Rows:
    """The table. ``script``: what happens to the rows of statements, in their order; then all goes well."""

    def __init__(self, script: list[str]) -> None:
        self.texts: dict[UUID, str | None] = {}
        self.gone: set[UUID] = set()
        self.others: dict[UUID, dict[str, int]] = {}
        self._script = iter(script)
        self._busy = False

    def write_as_another(self, id: UUID) -> None:
        others = self.others.setdefault(id, {})
        others[f"other {len(others)}"] = len(others)
        self.texts[id] = merge(self.texts[id], others, id)

    async def save_metadata(self, writes: list[MetadataWrite]) -> dict[UUID, MetadataAnswer]:
        assert not self._busy, "two statements at a time"
        assert len({write.id for write in writes}) == len(writes), "a row twice in a statement"
        self._busy = True
        try:
            await asyncio.sleep(0)
            happens = [next(self._script, "") for _ in writes]
            if "error" in happens:
                raise utils.OperationalError("away")
            answers = {
                write.id: answer
                for write, what in zip(writes, happens, strict=True)
                if (answer := self._write(write, what)) is not None
            }
            if "lost" in happens:
                raise utils.InterfaceError("no reply")
            if "fault" in happens:
                raise utils.DataError("a row's own")
            return answers
        finally:
            self._busy = False

    def _write(self, write: MetadataWrite, what: str) -> MetadataAnswer | None:
        if what == "fenced":
            self.gone.add(write.id)
        if write.id in self.gone:
            return None
        if what == "other":
            self.write_as_another(write.id)
        if what == "locked":
            return MetadataAnswer(False, False, None, None)
        if self.texts[write.id] != write.seen:
            return MetadataAnswer(False, True, self.texts[write.id], None)
        self.texts[write.id] = write.text
        return MetadataAnswer(True, False, None, None)


async def live(rows: Rows, saver: MetadataSaver, steps: list[str]) -> tuple[UUID, dict[str, Any]]:
    """One attempt, until its last state is settled; its id, and what it had."""
    id = uuid4()
    rows.texts[id] = '{"given":0}'
    metadata = RunningMetadata(id, uuid4(), rows.texts[id], saver)
    mine: dict[str, Any] = {"given": 0}
    for number, step in enumerate(steps):
        match step:
            case "set":
                metadata.values["a"] = mine["a"] = number
            case "remove":
                metadata.values.pop("a", None)
                mine.pop("a", None)
            case "save":
                metadata.save()
            case "progress":
                metadata.progress(number, None, "")
                mine["progress"] = number
            case "wait":
                await asyncio.sleep(0)
    settled = asyncio.Event()

    def saved() -> None:
        assert not settled.is_set(), "a second time"
        settled.set()
        if not saver.is_saved(metadata, saved):
            raise AssertionError("it isn't, though it was said")

    if not saver.is_saved(metadata, saved):
        await settled.wait()
    return id, mine


STEPS = st.lists(st.sampled_from(["set", "remove", "save", "progress", "wait", "wait"]), max_size=12)
HAPPENS = ["", "", "locked", "error", "lost", "other", "fenced", "fault"]


# A write whose reply was lost is undone by the next, which finds its row locked first.
@example(
    [["save", "set", "wait", "save", "remove", "wait"]], ["lost", "locked", "locked", "", "error", "error"]
)
@given(st.lists(STEPS, min_size=1, max_size=5), st.lists(st.sampled_from(HAPPENS), max_size=30))
def test_each_attempt_is_settled_once_and_nothing_is_lost(
    attempts: list[list[str]], script: list[str]
) -> None:
    async def run() -> None:
        rows = Rows(script)
        saver = MetadataSaver(rows)  # type: ignore[arg-type]  # it needs one method of a Store
        ended = await asyncio.gather(*(live(rows, saver, steps) for steps in attempts))
        while saver._timer is not None or saver._under_way:  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0)
        assert (saver._due, saver._ending, saver._locked) == (set(), {}, set())
        for id, mine in ended:
            found = read_row(rows.texts[id], id)
            others = {key: found.pop(key) for key in list(found) if key.startswith("other")}
            assert others == rows.others.get(id, {})
            if "progress" in found:
                found["progress"] = found["progress"]["done"]
            if id not in rows.gone and "fault" not in script:
                assert found == mine

    asyncio.run(run())
