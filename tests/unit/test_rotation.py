"""QueueRotation: which queues the next claim asks, and from which time on."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from aiotasks.rows import Lane, LaneRequest
from aiotasks.store.queues import ReadyIn
from aiotasks.store.wakeups import Wakeup
from aiotasks.worker.claiming import rotation as rotation_module
from aiotasks.worker.claiming import turns as turns_module
from aiotasks.worker.claiming import watermarks as watermarks_module
from aiotasks.worker.claiming.rotation import QueueRotation
from aiotasks.worker.claiming.watermarks import EMPTIED_MARGIN, EVER

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LONG_AGO = NOW - timedelta(hours=1)
MOMENT = int((NOW - datetime(2000, 1, 1, tzinfo=UTC)).total_seconds() * 1e6).to_bytes(8)


class Table:
    """Stands in for the Store: lists the queues in ``ready``, by lane."""

    def __init__(self, **ready: Sequence[str]) -> None:
        self.ready: dict[str, Sequence[str]] = ready
        self.listed: list[int] = []  # how many entries each statement returned

    async def list_queues(self, backend: str, after: ReadyIn, limit: int) -> list[ReadyIn]:
        pairs = sorted(ReadyIn(name, lane) for lane, names in self.ready.items() for name in names)
        found = [pair for pair in pairs if pair > after][:limit]
        self.listed.append(len(found))
        return found


def make(table: Table | None = None, queues: Sequence[str] = ()) -> QueueRotation:
    store: Any = table or Table()
    return QueueRotation(store, backend="default", queues=queues)


def jobs(*names: str) -> Any:
    return [
        SimpleNamespace(ready_at=MOMENT, queue_name=name, priority=0, last_attempted_at=MOMENT)
        for name in names
    ]


async def ask(
    rotation: QueueRotation, limit: int = 10, *, lane: Lane = "loop", robust_only: bool = False
) -> LaneRequest:
    """What the next claim asks for, where it is for one lane."""
    limits: dict[Lane, int] = {"loop": 0, "thread": 0, lane: limit}
    return (await rotation.requests(limits, robust_only={lane} if robust_only else ()))[lane]


async def take(rotation: QueueRotation, *given: str, limit: int = 10, **kwargs: Any) -> list[str]:
    """Claim, and get tasks of these queues; returns which were asked for."""
    request = await ask(rotation, limit, **kwargs)
    rotation.learn(kwargs.get("lane", "loop"), request, jobs(*given))
    return request.queues


async def serve(rotation: QueueRotation, backlog: Counter[str], limit: int) -> None:
    """Claim from these queues, as PostgreSQL does."""
    request = await ask(rotation, limit)
    given: list[str] = []
    for name in request.queues:
        number = min(backlog[name], limit - len(given))
        given += [name] * number
        backlog[name] -= number
    rotation.learn("loop", request, jobs(*given))


@pytest.fixture(autouse=True)
def no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of wake-ups are asked for once."""
    monkeypatch.setattr(turns_module, "INTERVAL", 0.0)


@pytest.fixture
def piece(monkeypatch: pytest.MonkeyPatch) -> int:
    for module in (rotation_module, turns_module):
        monkeypatch.setattr(module, "PIECE", 3)
    return 3


@pytest.mark.parametrize("during_a_claim", [False, True])
@pytest.mark.parametrize("how", ["look_back", "forget"])
async def test_what_was_promoted_during_a_claim_is_looked_for(how: str, during_a_claim: bool) -> None:
    """The claim may have been sent before the promotion was committed, so it leaves no watermark."""
    rotation = make(queues=["q"])

    async def since() -> datetime:
        return (await ask(rotation)).since[0]

    def look_back() -> None:
        rotation.look_back(LONG_AGO) if how == "look_back" else rotation.forget()

    await take(rotation, "q")
    assert await since() == NOW - EMPTIED_MARGIN
    claim = await ask(rotation)
    if during_a_claim:
        look_back()
    rotation.learn("loop", claim, jobs("q"))
    if not during_a_claim:
        look_back()
    assert await since() <= LONG_AGO
    rotation.learn("loop", claim, jobs("q"))
    assert await since() == NOW - EMPTIED_MARGIN


async def test_named_queues_are_all_asked_and_the_one_that_filled_a_claim_comes_last() -> None:
    rotation = make(queues=["c", "a", "b"])
    assert await take(rotation, "a", "a", limit=2) == ["a", "b", "c"]
    assert await take(rotation, "b", "c", limit=2) == ["b", "c", "a"]
    assert await take(rotation, "c", limit=2) == ["c", "a", "b"]
    assert await take(rotation) == ["c", "a", "b"]
    assert not rotation.note_wakeup(Wakeup("default", "d"))
    assert not rotation.note_wakeup(Wakeup("other", "a"))
    assert rotation.note_wakeup(Wakeup("default", "a"))
    assert await take(rotation) == ["c", "a", "b"]
    assert rotation.queues == ["a", "b", "c"]


async def test_any_name_is_found_by_the_walk_and_asked_for_until_it_gives_none() -> None:
    table = Table(loop=["a", "b"], thread=["c"])
    rotation = make(table)
    assert rotation.queues is None
    assert await take(rotation, "b") == ["a", "b"]
    assert await take(rotation) == ["b"]
    assert await take(rotation) == []
    assert table.listed == [3]


async def test_a_claim_asks_for_a_bounded_number_of_names(piece: int) -> None:
    """The walk goes on where it has stopped, and comes round once."""
    table = Table(loop="abcdefgh")
    rotation = make(table)
    asked = []
    while names := await take(rotation, limit=1):
        asked.append("".join(names))
    assert asked == ["abc", "def", "gh"]
    assert table.listed == [3, 3, 2]
    rotation.walk()
    assert await take(rotation, limit=5) == [*"abcde"]  # a larger claim needs more


async def test_names_of_a_lane_without_room_cost_only_steps(piece: int) -> None:
    """Thousands of queues may wait for a thread while coroutines have slots."""
    table = Table(thread=[f"{n:02}" for n in range(20)], loop=["last"])
    rotation = make(table)
    assert await take(rotation) == ["last"]
    assert max(table.listed) <= 10
    assert await take(rotation, limit=2, lane="thread") == ["00", "01", "02"]


async def test_lanes_that_are_at_the_same_place_share_a_statement() -> None:
    table = Table(loop=["a"], thread=["a", "b"])
    rotation = make(table)
    found = await rotation.requests({"loop": 10, "thread": 10})
    assert (found["loop"].queues, found["thread"].queues) == (["a"], ["a", "b"])
    assert table.listed == [3]


async def test_a_name_that_a_wake_up_tells_of_comes_first_without_a_walk(piece: int) -> None:
    table = Table(loop="abcdef")
    rotation = make(table)
    await take(rotation, *"aaa", limit=3)
    listed = len(table.listed)
    assert rotation.note_wakeup(Wakeup("default", "x"))
    assert (await take(rotation, "x", "b", "b", limit=3))[:2] == ["x", "b"]
    assert len(table.listed) - listed <= 1
    while await take(rotation):
        pass
    listed = len(table.listed)
    rotation.note_wakeup(Wakeup("default", "y"))
    assert await take(rotation) == ["y"]
    assert len(table.listed) == listed
    assert await take(rotation) == []


async def test_a_name_that_is_told_of_is_asked_for_while_wake_ups_may_be_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns_module, "INTERVAL", 3600.0)
    rotation = make()
    rotation.note_wakeup(Wakeup("default", "x"))
    assert await take(rotation) == ["x"]
    request = await ask(rotation)
    assert request.queues == ["x"]
    assert not rotation.unasked({"loop": request})
    monkeypatch.setattr(turns_module, "INTERVAL", 0.0)
    assert await take(rotation) == ["x"]
    assert await take(rotation) == []


async def test_a_flood_holds_others_up_for_one_claim(piece: int) -> None:
    """Whether wake-ups or the walk name them, and although wake-ups tell of the flood all the time."""
    backlog = Counter({"flood": 1000, "walked": 1})
    rotation = make(Table(loop=sorted(backlog)))
    for number in range(10):
        name = f"trickle {number}"
        backlog[name] = 1
        for told in ("flood", name):
            rotation.note_wakeup(Wakeup("default", told))
        await serve(rotation, backlog, 5)
        if backlog[name]:
            await serve(rotation, backlog, 5)
        assert not backlog[name]
        assert not backlog["walked"]
    assert backlog["flood"] < 1000 - 10 * 3  # it gets what the others leave


async def test_wake_ups_that_fill_claims_do_not_starve_the_walk(piece: int) -> None:
    rotation = make(Table(loop=["walked"]))
    began = []
    for number in range(6):
        rotation.note_wakeup(Wakeup("default", f"told {number}"))
        rotation.note_wakeup(Wakeup("default", f"told {number} too"))
        request = await ask(rotation, 1)
        began.append(request.queues[0])
        rotation.learn("loop", request, jobs(request.queues[0]))
    assert "walked" in began[:2]
    assert began[0] == "told 0"
    assert sum(name.startswith("told") for name in began) >= 3


async def test_all_queues_of_a_large_backlog_take_turns(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there are more than are remembered."""
    monkeypatch.setattr(turns_module, "NAMES_LIMIT", 4)
    names = [f"{n:02}" for n in range(20)]
    rotation = make(Table(loop=names))
    began = []
    for _ in range(60):
        request = await ask(rotation, 1)
        began.append(request.queues[0])
        assert len(request.queues) <= piece
        rotation.learn("loop", request, jobs(request.queues[0]))
    assert sorted(began) == sorted(names * 3)


async def test_a_name_that_only_robust_tasks_were_asked_of_is_asked_again() -> None:
    rotation = make(Table(loop=["a"]))
    assert await take(rotation, robust_only=True) == ["a"]
    assert await take(rotation) == ["a"]
    assert await take(rotation) == []


async def test_too_many_wake_ups_make_the_walk_find_their_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "NAMES_LIMIT", 4)
    table = Table()
    rotation = make(table)
    assert await take(rotation) == []
    names = [f"{n}" for n in range(6)]
    for name in names:
        rotation.note_wakeup(Wakeup("default", name))
    table.ready = {"loop": names}
    asked: set[str] = set()
    while found := await take(rotation):
        asked.update(found)
    assert asked == {*names}


async def test_a_walk_that_is_asked_for_during_a_piece_comes_round_once_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was committed meanwhile may be missing in it."""
    table = Table()
    rotation = make(table)
    list_queues = table.list_queues

    async def slow(*args: Any) -> list[ReadyIn]:
        found = await list_queues(*args)
        if not table.ready:
            table.ready = {"loop": ["late"]}
            rotation.walk()
        return found

    monkeypatch.setattr(table, "list_queues", slow)
    assert await take(rotation) == ["late"]
    assert table.listed == [0, 1]


async def test_queues_whose_watermark_hid_tasks_are_asked_again_without_it() -> None:
    rotation = make(Table(loop=["a", "b"]))
    await take(rotation, "a")
    request = await ask(rotation)
    assert request == LaneRequest(["a"], [NOW - EMPTIED_MARGIN], 10)
    rotation.learn("loop", request, [])
    assert await take(rotation) == []
    rotation.forget()
    assert (await ask(rotation)).since == [datetime(1970, 1, 1, tzinfo=UTC)]


async def test_a_queue_whose_mark_hides_tasks_stays_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another queue has filled the claim; of this one it has shown nothing."""
    monkeypatch.setattr(watermarks_module, "PASSED_INTERVAL", 0.0)
    rotation = make()
    for name in ("a", "b"):
        rotation.note_wakeup(Wakeup("default", name))
    for _ in range(2):
        await take(rotation, *["a"] * 9, "b")
    assert rotation.marks.behind("loop") == []
    request = await ask(rotation)
    assert "a" in rotation.marks.behind("loop")
    rotation.learn("loop", request, jobs(*["b"] * 10))
    assert "a" in await take(rotation)


async def test_a_claim_that_leaves_tasks_out_has_emptied_nothing() -> None:
    rotation = make(queues=["q"])
    await take(rotation, "q", robust_only=True)
    assert (await ask(rotation)).since == [EVER]
    await take(rotation, "q")
    assert (await ask(rotation)).since == [NOW - EMPTIED_MARGIN]


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watermarks_module, "WATERMARKS_LIMIT", 10)
    monkeypatch.setattr(turns_module, "NAMES_LIMIT", 10)
    rotation = make()
    for number in range(100):
        rotation.note_wakeup(Wakeup("default", f"{number}"))
        await take(rotation, f"{number}")
    kept = sum(rotation.marks.of("loop", f"{number}") is not None for number in range(100))
    assert 1 <= kept <= 10
    for number in range(100):
        rotation.note_wakeup(Wakeup("default", f"{number}"))
    assert len((await ask(rotation, 1000)).queues) <= 30
