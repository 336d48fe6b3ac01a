"""Limits by key as operators change and see them, by functions and by commands."""

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from django.core.management import CommandError

from aiotasks import Worker
from aiotasks.operations import limit_listing
from aiotasks.operations.counts import Count
from aiotasks.operations.limits import (
    LimitStatus,
    alimit,
    alimits,
    apause_limit,
    areset_limit,
    aresume_limit,
    askip_task,
    limit,
    limits,
    pause_limit,
    reset_limit,
    resume_limit,
    skip_task,
)
from tests.examples import example
from tests.worker import limited_work
from tests.worker.harness import Configure, Ledger, until

from .conftest import check, run, status

type Enter = Callable[..., UUID]
type Operation = Callable[[], Awaitable[None]]

pytestmark = pytest.mark.usefixtures("database")

PLACES, LINE = limited_work.places.name, limited_work.line.name


def shown(*arguments: str) -> dict[str | None, dict[str, Any]]:
    """What ``limits --json`` says, by key; of None the limit itself."""
    code, text = run("limits", "list", "--json", *arguments)
    assert code == 0
    return {one["key"]: one for one in json.loads(text)}


def enqueue(task: Any, *keys: str) -> list[str]:
    return [task.enqueue(key, 0.0).id for key in keys]


def start(sql: psycopg.Connection, *ids: str) -> None:
    """As a claim does."""
    sql.execute(
        "UPDATE aiotasks_task SET status = 'RUNNING', limit_held = limit_key WHERE id = ANY(%s::uuid[])",
        [list(ids)],
    )


def fail(sql: psycopg.Connection, id: str) -> None:
    """As a task of a line that stops."""
    start(sql, id)
    sql.execute(
        "UPDATE aiotasks_task SET status = 'FAILED', ordered = 'stop', finished_at = now() WHERE id = %s",
        [id],
    )


def test_numbers_of_a_key_go_before_those_of_its_limit_and_the_codes() -> None:
    (before,) = limits(PLACES, "a")
    assert (before.concurrency, before.rate, before.weight, before.changed) == (
        limited_work.PLACES,
        None,
        1,
        [],
    )
    limit(PLACES, concurrency=7, weight=2)
    found = limit(PLACES, "a", concurrency=20, rate="100/m", burst=5)
    assert (found.concurrency, found.rate, found.burst, found.weight) == (20, "100/m", 5, 2)
    assert sorted(found.changed) == ["burst", "concurrency", "rate", "weight"]
    (other,) = limits(PLACES, "b")
    assert (other.concurrency, other.rate, other.weight, other.changed) == (
        7,
        None,
        2,
        ["concurrency", "weight"],
    )
    assert limit(PLACES, "a", rate="1000/s").burst == 100  # as the code's: not the one of another rate
    assert limit(PLACES, "a", rate="1/m").burst == 1
    assert limit(PLACES, "a", rate="none").rate is None
    assert limit(PLACES, "a", weight=3).concurrency == 20  # what isn't named stays
    assert reset_limit(PLACES, "a")
    assert not reset_limit(PLACES, "a")
    (after,) = limits(PLACES, "a")
    assert (after.concurrency, after.changed) == (7, ["concurrency", "weight"])


async def test_the_same_in_coroutines() -> None:
    assert (await alimit(LINE, 42, weight=4)).weight == 4
    await apause_limit(LINE, 42)
    (found,) = await alimits(LINE, 42)
    assert (found.key, found.stands, found.weight) == ("42", "paused", 4)
    assert await aresume_limit(LINE, 42)
    assert not await aresume_limit(LINE, 42)
    assert await areset_limit(LINE, 42)
    assert not await askip_task(uuid4())
    assert [one.key for one in await alimits(LINE)] == [None]


def test_a_pause_of_a_key_and_of_a_limit() -> None:
    pause_limit(PLACES, "a", reason="the provider is down")
    pause_limit(PLACES, "a", reason="still")
    assert [(one.key, one.stands) for one in limits(PLACES)] == [(None, None), ("a", "paused")]
    (found,) = limits(PLACES, "a")
    assert found.pause_reason == "still"
    pause_limit(PLACES)
    assert limits(PLACES, "b")[0].stands == "paused"
    assert resume_limit(PLACES)
    assert resume_limit(PLACES, "a")
    assert [one.stands for one in limits(PLACES)] == [None]


def test_what_a_key_has(sql: psycopg.Connection) -> None:
    ids = enqueue(limited_work.work_in_places, *["a"] * 5, "b")
    ids += enqueue(limited_work.work_in_places_sync, "a")
    start(sql, *ids[:2])
    (found,) = limits(PLACES, "a")
    assert (found.waiting, found.running, found.stands) == (
        Count(4, capped=False),
        Count(2, capped=False),
        None,
    )
    assert found.oldest is not None
    start(sql, ids[2])
    assert [(one.key, one.stands) for one in limits(PLACES)] == [(None, None), ("a", "full"), ("b", None)]
    assert [one.waiting.number for one in limits(PLACES)] == [4, 3, 1]
    assert limits(PLACES, "b")[0].waiting == Count(1, capped=False)


def test_keys_that_only_wait(monkeypatch: pytest.MonkeyPatch, enter: Enter) -> None:
    """In several queues and both lanes; beside a limit that comes before, and one that comes behind."""
    enter()
    enqueue(limited_work.work_in_places, "c", "a", "a")
    enqueue(limited_work.work_in_places_sync, "b")
    limited_work.work_in_places.using(queue_name="other").enqueue("a", 0.0)
    enqueue(limited_work.work_in_line, *"xyz")

    def numbers(*of: str) -> dict[tuple[str, str | None], str]:
        return {(one.name, one.key): str(one.waiting) for one in limits(*of) if one.waiting.number}

    mine = {(PLACES, None): "5", (PLACES, "a"): "3", (PLACES, "b"): "1", (PLACES, "c"): "1"}
    lines = {(LINE, None): "3", (LINE, "x"): "1", (LINE, "y"): "1", (LINE, "z"): "1"}
    assert numbers(PLACES) == mine
    assert numbers() == mine | lines
    assert limits(PLACES)[0].oldest is not None
    monkeypatch.setattr(limit_listing, "MOST_LOOKED_AT", 3)  # one of each queue and lane
    assert numbers(LINE) == {(LINE, None): "1+", (LINE, "x"): "1"}
    assert {(LINE, None): "1+"}.items() <= numbers().items()
    assert len([one for one in limits(PLACES) if one.key is not None]) == 2
    monkeypatch.setattr(limit_listing, "MOST_LOOKED_AT", 1_000)
    monkeypatch.setattr(limit_listing, "MOST_KEYS", 2)
    assert len([one for one in limits() if one.key is not None]) == 2
    assert numbers(PLACES)[PLACES, None] == "5"


def test_a_paused_limit_says_how_many_tasks_wait(enter: Enter) -> None:
    enter()
    enqueue(limited_work.work_in_places, "a", "a", "b")
    pause_limit(PLACES)
    (found,) = status()["standing"]
    assert (found["key"], found["waiting"]["number"], found["stands"]) == (None, 3, "paused")
    assert f"Paused: {PLACES} (3 waiting)" in check()[1]["limits"]["message"]


def test_tasks_of_limits_that_the_code_does_not_declare(sql: psycopg.Connection, enter: Enter) -> None:
    enter()
    enqueue(limited_work.work_in_places, "a", "b", "b")
    sql.execute("UPDATE aiotasks_task SET limit_key = replace(limit_key, 'battery.places', 'taken.out')")
    found = check()[1]["limits"]
    assert found["verdict"] == "warning"
    assert "limits that the code here doesn't declare: taken.out (3 waiting)." in found["message"]
    (one,) = status()["standing"]
    assert (one["name"], one["key"], one["stands"]) == ("taken.out", None, "unknown")
    assert {one["stands"] for one in shown("taken.out").values()} == {"unknown"}
    assert "not declared by the code here" in run("limits")[1]
    remedy = re.search(r"`manage.py aiotasks (.+)`", found["remedy"])
    assert remedy is not None
    assert run(*remedy[1].split())[0] == 0
    assert check()[1]["limits"]["verdict"] == "ok"
    assert {one["stands"] for one in shown("taken.out").values()} == {None}
    assert status()["standing"] == []


def test_a_limit_that_only_a_tasks_module_declares(sql: psycopg.Connection, enter: Enter) -> None:
    """No app's module `tasks` imports it; `check` imports it as a worker does."""
    enter()
    enqueue(limited_work.work_in_places, "a")
    path = "tests.operations.declared_late.late"
    sql.execute("UPDATE aiotasks_task SET limit_key = 'operations.late:a', task_path = %s", [path])
    assert limits("operations.late", "a")[0].stands == "unknown"
    assert check()[1]["limits"]["verdict"] == "ok"
    assert limits("operations.late", "a")[0].known


def test_a_module_that_cannot_be_imported_is_named(
    enter: Enter, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, on stderr; the others are known all the same."""
    enter()
    modules = ["tests.unit.broken", "tests.worker.limited_work"]
    monkeypatch.setattr("aiotasks.management.subcommand.modules_of_apps", lambda names: modules)
    for command in (["limits", "--json"], ["limits", "set", PLACES, "weight=2"], ["status"]):
        assert run(*command)[0] == 0
        said = capsys.readouterr().err
        assert said.count("tests.unit.broken can't be imported (") == 1
        assert "`manage.py shell -c 'import tests.unit.broken'` shows where" in said
    assert PLACES in {one.name for one in limits()}


def test_counts_stop_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit_listing, "COUNT_LIMIT", 3)
    enqueue(limited_work.work_in_places, *["a"] * 5, "b")
    assert limits(PLACES, "a")[0].waiting == Count(3, capped=True)
    assert limits(PLACES)[0].waiting == Count(4, capped=True)


def test_a_rate_that_is_spent(sql: psycopg.Connection) -> None:
    limit(PLACES, "a", rate="1/m")
    sql.execute("UPDATE aiotasks_limit SET claimed_at = now() - interval '20 s', level = 1")
    (found,) = limits(PLACES, "a")
    assert found.stands == "rate"
    assert found.opens is not None
    assert 30 < found.opens <= 40
    limit(PLACES, "a", burst=2)
    assert limits(PLACES, "a")[0].stands is None


def test_a_key_that_a_task_has_closed(sql: psycopg.Connection) -> None:
    limit(PLACES, "a", weight=1)
    sql.execute("UPDATE aiotasks_limit SET closed_until = now() + interval '1 h'")
    (found,) = limits(PLACES, "a")
    assert found.stands == "closed"
    assert found.opens is not None
    assert 3_000 < found.opens <= 3_600
    assert [one["stands"] for one in status()["standing"]] == ["closed"]
    assert resume_limit(PLACES, "a")
    assert limits(PLACES, "a")[0].stands is None
    # The key of a limit without `by` is its name, and its other keys stay open.
    sql.execute(
        "INSERT INTO aiotasks_limit (backend, key, closed_until) VALUES ('default', %s, 'infinity')", [PLACES]
    )
    assert [each.stands for each in (*limits(PLACES, "a"), limits(PLACES)[0])] == [None, "closed"]


def test_a_line_that_a_failure_has_stopped_goes_on(sql: psycopg.Connection, enter: Enter) -> None:
    first, second = enqueue(limited_work.work_in_line, "a", "a")
    fail(sql, first)
    enter()
    (found,) = limits(LINE, "a")
    assert (found.stands, str(found.stopped_by), found.ordered) == ("stopped", first, True)
    code, findings = check()
    assert (code, findings["limits"]["verdict"]) == (0, "warning")
    remedy = re.search(r"`manage.py aiotasks (.+)`", findings["limits"]["remedy"])
    assert remedy is not None
    with pytest.raises(CommandError, match="stopped by task " + first):
        run("limits", "skip", f"{LINE}:a", second)
    code, text = run(*remedy[1].split())
    assert (code, "stopped" in text, text.startswith("The key goes on")) == (0, False, True)
    with pytest.raises(CommandError, match=f"^{LINE}:a isn't stopped by a task"):
        run("limits", "skip", f"{LINE}:a", first)
    assert not skip_task(first)
    assert check()[1]["limits"]["verdict"] == "ok"
    assert sql.execute("SELECT status FROM aiotasks_task WHERE id = %s", [first]).fetchone() == ("FAILED",)


def test_a_retry_that_holds_its_line(sql: psycopg.Connection) -> None:
    (id,) = enqueue(limited_work.work_in_line, "a")
    start(sql, id)
    sql.execute("UPDATE aiotasks_task SET status = 'SCHEDULED', run_after = now() + interval '1 h'")
    assert limits(LINE, "a")[0].stands == "retry"
    (found,) = status()["standing"]
    assert (found["name"], found["key"], found["stands"]) == (LINE, "a", "retry")


def test_the_status_counts_tasks_with_limits_and_shows_what_stands_still(enter: Enter) -> None:
    enter()
    assert "limited" not in run("status")[1]
    enqueue(limited_work.work_in_places, "a", "a", "b")
    pause_limit(PLACES, "a", reason="the provider is down")
    limit(PLACES, "b", weight=2)
    found = status()
    assert [(queue["limited"]["number"], queue["ready"]["number"]) for queue in found["queues"]] == [(3, 3)]
    assert [(one["key"], one["stands"], one["waiting"]["number"]) for one in found["standing"]] == [
        ("a", "paused", 2)
    ]
    text = run("status")[1]
    assert re.search(r"^queue +ready +limited ", text, re.MULTILINE)
    assert re.search(rf"^{PLACES}:a +2 +\d+ s +paused: the provider is down$", text, re.MULTILINE)
    finding = check()[1]["limits"]
    assert (finding["verdict"], finding["remedy"]) == ("ok", "")
    pause_limit(PLACES)
    assert re.search(rf"^{PLACES} +3 +\d+ s +paused$", run("status")[1], re.MULTILINE)
    assert f"{PLACES}:a (2 waiting)" in finding["message"]


def test_workers_that_are_too_old_for_limits(enter: Enter) -> None:
    enqueue(limited_work.work_in_places, "a")
    enter(claims_keyed=None)
    finding = check()[1]["limits"]
    assert (finding["verdict"], "coroutine tasks with limits" in finding["message"]) == ("warning", True)
    enter(claims_keyed=True, concurrency=0)
    enter(claims_keyed=True, lease=-1.0)
    assert check()[1]["limits"] == finding
    enter(claims_keyed=True)
    assert check()[1]["limits"]["verdict"] == "ok"


def test_commands(sql: psycopg.Connection) -> None:
    run("limits", "set", PLACES, "concurrency=4")
    code, text = run("limits", "set", f"{PLACES}:a:1", "concurrency=20", "rate=100/m", "burst=10", "weight=2")
    assert code == 0
    assert re.search(rf"^{PLACES}:a:1 +0 +- +0 +20\* +100/m\* +10\* +2\*$", text, re.MULTILINE)
    assert text.splitlines()[-1] == "* Set by an operator."
    found = shown(PLACES)
    assert list(found) == [None, "a:1"]
    assert (found[None]["concurrency"], found["a:1"]["concurrency"]) == (4, 20)
    assert {None} < {*shown()}
    assert "paused" in run("limits", "pause", f"{PLACES}:a:1", "--reason", "why")[1]
    assert "paused" not in run("limits", "resume", f"{PLACES}:a:1")[1]
    assert run("limits", "resume", f"{PLACES}:a:1")[1].startswith("It was neither")
    assert "20*" not in run("limits", "reset", f"{PLACES}:a:1")[1]
    assert run("limits", "reset", f"{PLACES}:a:1")[1].startswith("No operator had")
    assert list(shown(PLACES)) == [None]


def test_limits_of_the_code_are_shown_and_a_backend_without_any(configure: Configure) -> None:
    text = run("limits")[1]
    assert re.search(rf"^{LINE} +0 +- +- +in order +- +- +1$", text, re.MULTILINE)
    assert len(shown()) <= limit_listing.MOST_KEYS
    from aiotasks.operations.text import limit_parts

    assert limit_parts([]) == ["There are no limits."]


WRONG = {
    "nothing": (["set", PLACES], "are required: NUMBER=VALUE"),
    "action": (["rest", PLACES], "invalid choice: 'rest'.* Did you mean 'reset'"),
    "no value": (["set", PLACES, "weight"], "'weight' has no value. Write it as in"),
    "no number": (["set", PLACES, "weight=x"], "weight must be a whole number from 1 to 100, not 'x'"),
    "too small": (["set", PLACES, "concurrency=0"], "from 1 to 100000, not 0"),
    "rate": (
        ["set", PLACES, "rate=fast"],
        "rate must be a number of starts and a time, as in 100/m, .* or none, not 'fast'",
    ),
    "digits": (["set", PLACES, f"concurrency={'9' * 5000}"], "from 1 to 100000, not '999"),
    "unknown": (
        ["set", PLACES, "color=3"],
        "'color' isn't a number of a limit. These are: concurrency",
    ),
    "twice": (["set", PLACES, "weight=2", "weight=3"], "weight is given twice"),
    "name": (["set", "No Name", "weight=2"], "The name of a Limit must have 1 to 100"),
    "key": (["set", f"{PLACES}:", "weight=2"], "key must be an integer or a string"),
    "reason": (["resume", PLACES, "--reason", "x"], "unrecognized arguments: --reason x"),
    "id": (["skip", PLACES, "5"], "'5' isn't the id of a task"),
    "not stopped": (["skip", PLACES, str(uuid4())], f"{PLACES} isn't stopped by a task"),
    "order": (["set", f"{LINE}:a", "concurrency=2"], "is ordered: one task of a key runs at a time"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_mistakes(mistake: str) -> None:
    arguments, told = WRONG[mistake]
    with pytest.raises(CommandError, match=told):
        run("limits", *arguments)


def test_an_id_is_read_however_it_is_written(sql: psycopg.Connection) -> None:
    (id,) = enqueue(limited_work.work_in_line, "a")
    fail(sql, id)
    assert run("limits", "skip", f"{LINE}:a", UUID(id).hex.upper())[0] == 0


def test_a_name_that_the_code_lacks_is_remarked_on() -> None:
    for command in (["limits", "list", "place"], ["limits", "set", "place:a", "weight=2"]):
        code, text = run(*command)
        assert (code, "The code here declares no limit named place. It declares: " in text) == (0, True)
        assert PLACES in text
    assert "declares no limit" not in run("limits", "list", PLACES)[1]


def test_a_wait_below_a_second_is_no_zero(sql: psycopg.Connection) -> None:
    limit(PLACES, "a", rate="1/h")
    sql.execute("UPDATE aiotasks_limit SET claimed_at = now() - interval '3599.1 s', level = 1")
    assert "next start in 0 s" not in run("limits", "list", f"{PLACES}:a")[1]
    sql.execute("UPDATE aiotasks_limit SET closed_until = now() + interval '0.9 s'")
    assert "closed for 0 s" not in run("limits", "list", f"{PLACES}:a")[1]


def test_a_burst_without_a_rate_is_shown() -> None:
    assert re.search(r" - +5\* +1$", run("limits", "set", f"{PLACES}:a", "burst=5")[1], re.MULTILINE)


def test_mistakes_of_callers() -> None:
    with pytest.raises(TypeError, match="at least one"):
        limit(PLACES)
    with pytest.raises(ValueError, match="must be the id of a task"):
        skip_task("5")
    with pytest.raises(CommandError, match="The name of a Limit"):
        run("limits", "list", "No Name")


# What keeps a key's tasks from starting, and what an operator does about it.
async def _pause() -> None:
    await apause_limit(PLACES, "a")


async def _resume() -> None:
    assert await aresume_limit(PLACES, "a")


async def _pause_all() -> None:
    await apause_limit(PLACES)


async def _resume_all() -> None:
    assert await aresume_limit(PLACES)


async def _slow_down() -> None:
    await alimit(PLACES, "a", rate="1/h", burst=1)


async def _reset() -> None:
    assert await areset_limit(PLACES, "a")


async def _one_place() -> None:
    await alimit(PLACES, "a", concurrency=1)


async def _more_places() -> None:
    await alimit(PLACES, "a", concurrency=2)


@pytest.mark.parametrize(
    ("stop", "before", "go"),
    [
        (_pause, 0, _resume),
        (_pause_all, 0, _resume_all),
        (_slow_down, 1, _reset),
        (_one_place, 1, _more_places),
    ],
)
async def test_workers_obey_without_a_poll(
    configure: Configure, ledger: Ledger, stop: Operation, before: int, go: Operation
) -> None:
    """``before``: how many tasks of the key start all the same."""
    configure(POLL_INTERVAL=3_600, LEASE_TIMEOUT=300)
    async with Worker(concurrency=10, threads=0, grace=0.0):
        await stop()
        for _ in range(before):
            first = await limited_work.work_in_places.aenqueue("a", 3_600.0)
            await until(lambda id=first.id: ledger.events("start", id))
        second = await limited_work.work_in_places.aenqueue("a", 0.0)
        for _ in range(3):  # the key's turn has come meanwhile
            witness = await limited_work.work_in_line.aenqueue("w", 0.0)
            await until(lambda id=witness.id: ledger.events("end", id))
        assert ledger.events("start", second.id) == 0
        await go()
        await until(lambda: ledger.events("end", second.id))


async def test_a_line_that_was_let_go_on_starts_its_next_task(configure: Configure, ledger: Ledger) -> None:
    configure(POLL_INTERVAL=3_600, LEASE_TIMEOUT=300)
    async with Worker(concurrency=10, threads=0):
        failing = await limited_work.fail_in_line.aenqueue("a")
        await until(lambda: ledger.task(failing.id).status == "FAILED")
        waiting = await limited_work.fail_in_line.aenqueue("a")
        witness = await limited_work.work_in_line.aenqueue("w", 0.0)
        await until(lambda: ledger.events("end", witness.id))
        assert ledger.task(waiting.id).status == "READY"
        assert await askip_task(failing.id)
        await until(lambda: ledger.task(waiting.id).status == "FAILED")


async def test_the_page_on_operating() -> None:
    with example("howto/operate.md") as page:
        await page.run()
        assert page.blocks == []
    found = {one.key: one for one in await alimits("tenant")}
    assert (found["42"].concurrency, found["42"].rate) == (10, "300/m")
    assert found[None].stands is None
    assert "77" not in found


def test_a_status_is_what_programs_read() -> None:
    (found,) = limits(PLACES, "a")
    assert {*shown(f"{PLACES}:a")["a"]} == {*LimitStatus.__dataclass_fields__}
    assert found.known
    assert not limits("nobody.knows", "a")[0].known
