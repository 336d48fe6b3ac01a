"""Schedules as operators see and change them: the functions, the command, status and check."""

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import psycopg
import pytest
from django.core.management import CommandError
from django.db import transaction
from django.tasks.exceptions import InvalidTask

from aiotasks.exceptions import UnknownTask
from aiotasks.management.output import Output
from aiotasks.operations import schedule_states, schedules
from aiotasks.operations.check.schedules import judge_schedules
from aiotasks.operations.schedule_states import ScheduleState, state_of
from aiotasks.operations.schedule_text import schedules_as_text
from aiotasks.operations.schedules import (
    aadd_schedule,
    add_schedule,
    alist_schedules,
    apause_schedule,
    aremove_schedule,
    aresume_schedule,
    arun_schedule,
    list_schedules,
    pause_schedule,
    remove_schedule,
    resume_schedule,
    run_schedule,
)
from aiotasks.schedules.cron import Times
from aiotasks.schedules.declarations import Declaration, Problem
from aiotasks.schedules.discovery import Discovered
from aiotasks.schedules.wanted import parse_wanted
from aiotasks.schedules.words import in_words
from aiotasks.store.schedules import DeclaredSchedule, ScheduleRow, Schedules
from aiotasks.store.store import Store
from tests import tasks
from tests.site import default_task_backend, postgres_result

from .conftest import check, run, status

BERLIN = ZoneInfo("Europe/Berlin")
ECHO = "tests.tasks.echo"


def shown(*arguments: str) -> Any:
    code, text = run("schedules", *arguments, "--json")
    assert code == 0
    return json.loads(text)


def declare(name: str, cron: str = "@daily", **keywords: Any) -> None:
    """As a worker whose code has it."""
    wanted = parse_wanted(cron, timezone="UTC", **keywords)
    row = Declaration(name=name, task=tasks.echo, wanted=wanted).row
    new = DeclaredSchedule(row, row.digest(), wanted.times.next_after(datetime.now(UTC)))

    async def write(backend: Any, route: Any) -> None:
        await route.run(lambda store: store.declare_schedules("default", [new], from_code=True))

    default_task_backend.run_over_django(write)


# --- Operations


def test_an_operator_adds_a_schedule(database: str, sql: psycopg.Connection) -> None:
    before = datetime.now(UTC)
    added = add_schedule(
        "report",
        ECHO,
        "0 3 * * *",
        timezone="Europe/Berlin",
        args=[1],
        kwargs={"a": "b"},
        missed="skip",
        within=60,
        overlap="queue",
        jitter=timedelta(seconds=5),
    )
    assert list_schedules() == [added]
    assert (added.name, added.words, added.timezone) == ("report", "at 03:00 every day", "Europe/Berlin")
    assert (added.state, added.from_code, added.task_path, added.queue_name) == (
        "active",
        False,
        ECHO,
        "default",
    )
    assert (added.args, added.kwargs, added.missed, added.within) == ([1], {"a": "b"}, "skip", 60.0)
    assert (added.overlap, added.jitter, added.last_tick, added.skipped) == ("queue", 5.0, None, 0)
    times = Times("0 3 * * *", "Europe/Berlin")
    first = times.next_after(before)
    assert first is not None
    assert added.next[0] == first
    assert [tick.hour for tick in added.next] == [3, 3, 3]
    assert added.next[1] == times.next_after(added.next[0])
    ((next_at,),) = sql.execute("SELECT next_at FROM aiotasks_schedule").fetchall()
    assert next_at == first


def test_a_task_may_be_given_as_it_is(database: str) -> None:
    add_schedule("a", tasks.echo.using(queue_name="slow", priority=5), every=timedelta(minutes=5))
    (state,) = list_schedules()
    assert (state.words, state.timezone, state.queue_name, state.priority) == (
        "every 5 minutes",
        "UTC",
        "slow",
        5,
    )
    assert [tick.minute % 5 for tick in state.next] == [0, 0, 0]


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        (("x", "tests.nowhere", "@daily"), UnknownTask, "tests.nowhere"),
        (("x", ECHO, "* * *"), ValueError, "has 3 fields"),
        (("x", ECHO), ValueError, "either a cron expression or every"),
        (("", ECHO, "@daily"), ValueError, "name must be a text"),
        (("x", "tests.tasks.noop", "@daily"), InvalidTask, "don't fit"),
    ],
)
def test_what_cannot_be_added(database: str, arguments: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        add_schedule(*arguments, kwargs={"a": 1})
    assert list_schedules() == []


def test_names_are_taken_once(database: str) -> None:
    add_schedule("a", ECHO, "@daily")
    declare("b")
    with pytest.raises(ValueError, match=r"There is a schedule 'a' of backend 'default' already\. Choose"):
        add_schedule("a", ECHO, "@hourly")
    with pytest.raises(ValueError, match="The code declares a schedule 'b' of backend 'default' already"):
        add_schedule("b", ECHO, "@hourly")
    assert [(each.name, each.expression, each.from_code) for each in list_schedules()] == [
        ("a", "@daily", False),
        ("b", "@daily", True),
    ]


def test_a_pause_and_its_end(database: str) -> None:
    declare("a")
    paused = pause_schedule("a", reason="the warehouse is being moved")
    assert (paused.state, paused.pause_reason, paused.next) == ("paused", "the warehouse is being moved", [])
    assert paused.paused_at is not None
    again = pause_schedule("a", reason="still")
    assert (again.paused_at, again.pause_reason) == (paused.paused_at, "still")
    resumed = resume_schedule("a")
    assert (resumed.state, resumed.paused_at, resumed.pause_reason) == ("active", None, None)
    assert resumed.next[0] > datetime.now(UTC)
    assert resume_schedule("a") == resumed
    with pytest.raises(ValueError, match="reason must be a text"):
        pause_schedule("a", reason="x" * 1001)


def test_a_deploy_beside_a_resume(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next tick isn't computed by times that are no longer declared."""
    declare("a", "* * * * *")
    pause_schedule("a")
    resume = Store.resume_schedule
    times = ["0 0 1 1 *"]

    async def late(self: Store, *args: Any) -> bool:
        if times:
            declare("a", times.pop())
        return await resume(self, *args)

    monkeypatch.setattr(Store, "resume_schedule", late)
    resumed = resume_schedule("a")
    assert (resumed.state, resumed.expression) == ("active", "0 0 1 1 *")
    assert (resumed.next[0].month, resumed.next[0].day, resumed.next[0].hour) == (1, 1, 0)


def test_only_what_the_code_does_not_declare_is_removed(database: str, sql: psycopg.Connection) -> None:
    add_schedule("a", ECHO, "@daily")
    declare("b")
    remove_schedule("a")
    with pytest.raises(ValueError, match=r"The code declares schedule 'b' of tests\.tasks\.echo, and would"):
        remove_schedule("b")
    sql.execute("UPDATE aiotasks_schedule SET stopped_at = now(), next_at = NULL")
    (stopped,) = list_schedules()
    assert (stopped.state, stopped.next) == ("stopped", [])
    remove_schedule("b")
    assert list_schedules() == []


def test_unknown_names(database: str) -> None:
    for call in (pause_schedule, resume_schedule, run_schedule, remove_schedule):
        for name in ("nowhere", "no\0where"):
            with pytest.raises(LookupError, match="Backend 'default' has no schedule 'no"):
                call(name)
    assert list_schedules(names=["nowhere", "no\0where"]) == []


def test_a_schedule_is_run_by_hand(database: str, sql: psycopg.Connection) -> None:
    add_schedule("a", ECHO, "@daily", args=[1], kwargs={"b": 2}, jitter=3600)
    pause_schedule("a")
    (before,) = list_schedules()
    result = run_schedule("a")
    assert (result.args, result.kwargs, result.status) == ([1], {"b": 2}, "READY")
    raw = postgres_result(result).raw_metadata
    assert (raw["_schedule"], raw["_by_hand"], postgres_result(result).metadata) == ("a", True, {})
    assert abs(datetime.fromisoformat(raw["_scheduled_for"]) - datetime.now(UTC)) < timedelta(minutes=1)
    assert list_schedules() == [replace(before, holder=UUID(result.id))]
    again = run_schedule("a")
    assert (again.id, postgres_result(again).is_duplicate) == (result.id, True)
    sql.execute("UPDATE aiotasks_schedule SET overlap = 'allow'")
    other = run_schedule("a")
    assert other.id != result.id
    assert sql.execute("SELECT count(*) FROM aiotasks_task").fetchall() == [(2,)]


def test_a_change_is_part_of_the_transaction(database: str) -> None:
    add_schedule("a", ECHO, "@daily")
    with transaction.atomic():
        pause_schedule("a")
        run_schedule("a")
        add_schedule("b", ECHO, "@daily")
        assert [each.state for each in list_schedules()] == ["paused", "active"]
        transaction.set_rollback(True)
    (state,) = list_schedules()
    assert state.state == "active"


async def test_the_same_in_coroutines(database: str) -> None:
    added = await aadd_schedule("a", tasks.echo, "@daily")
    assert await alist_schedules() == [added]
    assert (await apause_schedule("a", reason="why")).pause_reason == "why"
    assert (await aresume_schedule("a")).state == "active"
    result = await arun_schedule("a")
    assert (await default_task_backend.aget_result(result.id)).task == tasks.echo
    await aremove_schedule("a")
    assert await alist_schedules() == []


# --- The command


def test_the_command(database: str) -> None:
    assert run("schedules") == (0, "No schedule.\n")
    (added,) = shown("add", "a", ECHO, "--every", "90s", "--args", '[1, "x"]', "--overlap", "allow")
    assert (added["words"], added["args"], added["overlap"]) == ("every 90 seconds", [1, "x"], "allow")
    assert shown() == shown("list") == shown("list", "a") == [added]
    assert run("schedules", "--json", "list") == run("schedules", "list", "--json")
    code, text = run("schedules")
    assert code == 0
    assert text.startswith("a: every 90 seconds (@every 90), times in America/Chicago [operator, active]\n")
    assert "  task     tests.tasks.echo(1, 'x'), queue default\n  next     " in text
    (paused,) = shown("pause", "a", "--reason", "quiet")
    assert (paused["state"], paused["pause_reason"]) == ("paused", "quiet")
    assert shown("resume", "a")[0]["state"] == "active"
    answer = shown("run-now", "a")
    assert (default_task_backend.get_result(answer["id"]).args, answer["is_duplicate"]) == ([1, "x"], False)
    assert run("schedules", "run-now", "a")[1].startswith("Enqueued task ")
    add_schedule("b", ECHO, "@daily")
    id = shown("run-now", "b")["id"]
    assert run("schedules", "run-now", "b") == (0, f"Not enqueued, because task {id} has its key.\n")
    remove_schedule("b")
    assert shown("remove", "a") == {"removed": "a"}
    assert shown() == []


async def test_a_long_list_lets_the_loop_go_on(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abcd":
        await aadd_schedule(name, ECHO, "@daily")
    steps, seen = 0, []

    async def step() -> None:
        nonlocal steps
        while True:
            await asyncio.sleep(0)
            steps += 1

    def look(row: ScheduleRow, holder: UUID | None) -> ScheduleState:
        seen.append(steps)
        return state_of(row, holder)

    monkeypatch.setattr(schedules, "AT_ONCE", 2)
    monkeypatch.setattr(schedules, "state_of", look)
    beside = asyncio.ensure_future(step())
    assert [each.name for each in await alist_schedules()] == [*"abcd"]
    beside.cancel()
    assert seen[0] == seen[1] < seen[2] == seen[3]


def test_the_command_says_what_is_wrong(database: str) -> None:
    for arguments, words in {
        ("pause", "nowhere"): r"has no schedule 'nowhere'\.$",
        ("list", "nowhere"): r"has no schedule 'nowhere'\.$",
        ("add", "a", "tests.nowhere", "--cron", "@daily"): "here: module 'tests' has no 'nowhere'.$",
        ("add", "a", "tests.no.where", "--cron", "@daily"): "here: there is no module 'tests.no'.$",
        ("add", "a", "nowhere", "--cron", "@daily"): "no module in front",
        ("add", "a", "tests.tasks.os", "--cron", "@daily"): "module 'tests.tasks' has no 'os'",
        ("add", "a", ECHO, "--cron", "* * *"): "has 3 fields",
        ("pause", "no\0where"): "has no schedule",
        ("add", "a", ECHO): "Give either --cron or --every.",
        ("add", "a", ECHO, "--cron", "bad"): "has 1 field: ",
        ("add", "a", ECHO, "--every", "0s"): "--every: '0s' isn't from 1s to 366d",
        ("add", "a", ECHO, "--every", "5m", "--timezone", "UTC"): "an interval goes by elapsed time",
        ("add", "a", ECHO, "--every", "5"): "isn't a number with a unit",
        ("add", "a", ECHO, "--cron", "@daily", "--args", "{"): "isn't JSON",
        ("add", "a", ECHO, "--cron", "@daily", "--args", "[" * 100_000): "isn't JSON",
        ("add", "a", ECHO, "--cron", "@daily", "--args", "5"): "--args: '5' isn't a JSON list",
        ("add", "a", ECHO, "--cron", "@daily", "--kwargs", "[]"): r"--kwargs: '\[\]' isn't a JSON object",
        ("add", "a", ECHO, "--cron", "@daily", "--within", "0s"): "--within: '0s' isn't from 1s to 366d",
        ("add", "a", ECHO, "--every", "60s", "--jitter", "61s"): "^--jitter must not be longer",
        ("add", "a", ECHO, "--cron", "@daily", "--timezone", "Mars"): "^--timezone must be .*'Mars'",
        ("list", "--backend", "nowhere"): "TASKS has no backend 'nowhere'",
    }.items():
        with pytest.raises(CommandError, match=words):
            run("schedules", *arguments)


def test_the_command_says_that_nothing_was_to_do(database: str) -> None:
    add_schedule("a", ECHO, "@daily")
    assert run("schedules", "resume", "a")[1].startswith("It wasn't paused.\na: ")
    assert run("schedules", "pause", "a", "--reason", "x")[1].startswith("a: ")
    text = run("schedules", "pause", "a", "--reason", "y")[1]
    assert text.startswith("It was paused already, and has this reason now.\na: ")
    assert ": y\n" in text
    assert run("schedules", "resume", "a")[1].startswith("a: ")


def test_the_command_asks_after_the_name_that_is_meant(database: str) -> None:
    for name in ("report", "shop.tasks.refresh"):
        add_schedule(name, ECHO, "@daily")
    for arguments in (["run-now"], ["pause"], ["resume"], ["remove"], ["list", "report"]):
        for name, meant in {"reprot": "report", "refresh": "shop.tasks.refresh"}.items():
            with pytest.raises(CommandError, match=rf"no schedule '{name}'\. Did you mean '{meant}'\?$"):
                run("schedules", *arguments, name)


# --- For people


def state(**values: Any) -> ScheduleState:
    tick = datetime(2026, 12, 1, 3, tzinfo=BERLIN)
    whole: dict[str, Any] = {
        "name": "nightly",
        "words": "at 03:00 every day",
        "expression": "0 3 * * *",
        "timezone": "Europe/Berlin",
        "shown_in": "Europe/Berlin",
        "state": "active",
        "from_code": True,
        "task_path": "shop.tasks.report",
        "queue_name": "slow",
        "priority": 0,
        "args": [1],
        "kwargs": {"to": "ann"},
        "missed": "last",
        "within": None,
        "overlap": "skip",
        "jitter": None,
        "next": [tick, tick + timedelta(days=1)],
        "last_tick": tick - timedelta(days=1),
        "skipped": 0,
        "skipped_tick": None,
        "holder": None,
        "failures": 0,
        "error": None,
        "retry_at": None,
        "paused_at": None,
        "pause_reason": None,
        "stopped_at": None,
    }
    return ScheduleState(**whole | values)


def test_as_text() -> None:
    assert schedules_as_text([state()]) == (
        "nightly: at 03:00 every day (0 3 * * *), Europe/Berlin [code, active]\n"
        "  task     shop.tasks.report(1, to='ann'), queue slow\n"
        "  next     Tue 2026-12-01 03:00:00+01:00, Wed 2026-12-02 03:00:00+01:00\n"
        "  last     Mon 2026-11-30 03:00:00+01:00"
    )
    tick = datetime(2026, 11, 29, 3, tzinfo=BERLIN)
    troubled = state(
        state="failing",
        from_code=False,
        last_tick=None,
        skipped=1234,
        skipped_tick=tick,
        failures=1,
        error="ValueError: \x1b[1m",
        retry_at=tick,
        paused_at=tick,
        pause_reason="",
        stopped_at=tick,
        next=[],
    )
    assert schedules_as_text([troubled]) == (
        "nightly: at 03:00 every day (0 3 * * *), Europe/Berlin [operator, failing]\n"
        "  task     shop.tasks.report(1, to='ann'), queue slow\n"
        "  next     -\n"
        "  last     -\n"
        "  skipped  1,234 ticks, the last one Sun 2026-11-29 03:00:00+01:00\n"
        "  failed   1 time, tried again Sun 2026-11-29 03:00:00+01:00: 'ValueError: \\x1b[1m'\n"
        "  paused   since Sun 2026-11-29 03:00:00+01:00\n"
        "  stopped  since Sun 2026-11-29 03:00:00+01:00: no worker's code declares it; `remove` removes it"
    )


@pytest.mark.parametrize(
    ("overlap", "until"), [("skip", "it has finished"), ("queue", "it starts"), (None, "its key is free")]
)
def test_the_task_is_named_that_ticks_wait_for(overlap: str | None, until: str) -> None:
    text = schedules_as_text([state(overlap=overlap, holder=UUID(int=7))])
    line = f"\n  held by  task 00000000-0000-0000-0000-000000000007: ticks are left out until {until}"
    assert text.endswith(line)
    assert "held by" not in schedules_as_text([state(holder=UUID(int=7), next=[])])


def test_times_are_shown_in_a_zone_that_is_named(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule_states, "settings", SimpleNamespace(TIME_ZONE="Asia/Tokyo"))
    add_schedule("a", ECHO, every=3600)
    add_schedule("b", ECHO, "@daily", timezone="Europe/Berlin")
    a, b = list_schedules()
    assert (a.timezone, a.shown_in, a.next[0].utcoffset()) == ("UTC", "Asia/Tokyo", timedelta(hours=9))
    assert (b.timezone, b.shown_in, b.next[0].tzinfo) == ("Europe/Berlin", "Europe/Berlin", BERLIN)
    first, second = schedules_as_text([a, b]).split("\n\n")
    assert first.startswith("a: every hour (@every 3600), times in Asia/Tokyo [operator, active]\n")
    assert second.startswith("b: at 00:00 every day (@daily), Europe/Berlin [operator, active]\n")
    unknown = state(timezone="Mars", shown_in="UTC")
    assert schedules_as_text([unknown]).startswith("nightly: at 03:00 every day (0 3 * * *), Mars, times in ")
    monkeypatch.setattr(schedule_states, "settings", SimpleNamespace(TIME_ZONE="Mars"))
    assert [each.shown_in for each in list_schedules()] == ["UTC", "Europe/Berlin"]


def test_the_task_that_holds_a_schedules_key_is_found(database: str, sql: psycopg.Connection) -> None:
    add_schedule("skips", ECHO, "@daily")
    add_schedule("queues", ECHO, "@daily", overlap="queue")
    add_schedule("allows", ECHO, "@daily", overlap="allow")
    add_schedule("rests", ECHO, "@daily")
    ids = {name: UUID(run_schedule(name).id) for name in ("skips", "queues", "allows")}
    held = {each.name: each.holder for each in list_schedules()}
    assert held == {"skips": ids["skips"], "queues": ids["queues"], "allows": None, "rests": None}
    assert resume_schedule("skips").holder == ids["skips"]
    sql.execute("UPDATE aiotasks_schedule SET last_tick = now(), skipped_tick = now() WHERE name = 'queues'")
    assert {each["name"]: each["holder"] for each in status()["schedules"]} == {
        name: None if id is None else str(id) for name, id in held.items()
    }
    lines = run("status")[1].splitlines()
    told = f" leaves out ticks because of task {ids['queues']}."
    assert [line for line in lines if "leaves out" in line] == [f"queues{told}"]
    sql.execute("UPDATE aiotasks_task SET status = 'SUCCESSFUL', finished_at = now(), ready_at = NULL")
    assert [each.holder for each in list_schedules()] == [None] * 4


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("@every 1", "every second"),
        ("@every 300", "every 5 minutes"),
        ("@every 86400", "every day"),
        ("@every 5400", "every 90 minutes"),
        ("@every 1.5", "every 1.5 seconds"),
        ("* * * * *", "every minute"),
        ("*/5 * * * *", "every 5 minutes"),
        ("0 */1  * * * *", "every minute"),
        ("*/10 * * * * *", "every 10 seconds"),
        ("*/7 * * * *", "every seventh minute of every hour"),
        ("@Daily", "at 00:00 every day"),
        ("30 3 * * mon-fri", "at 03:30 on Monday through Friday"),
        ("0 12 * * fri#2", "at 12:00 on the second Friday of the month"),
    ],
)
def test_times_in_words(expression: str, words: str) -> None:
    assert in_words(Times(expression)) == words


# --- Status and check


def test_status_shows_what_fails_and_what_is_next(database: str, sql: psycopg.Connection) -> None:
    for number in range(25):
        add_schedule(f"s{number:02}", ECHO, "@yearly")
    add_schedule("soon", ECHO, every=1, timezone=None)
    declare("stopped")
    sql.execute("UPDATE aiotasks_schedule SET stopped_at = now(), next_at = NULL WHERE name = 'stopped'")
    sql.execute("UPDATE aiotasks_schedule SET failures = 2, error = 'ValueError: no' WHERE name = 's20'")
    found = status()
    assert [each["name"] for each in found["schedules"]][:3] == ["s20", "soon", "s00"]
    assert (len(found["schedules"]), found["schedules_in_all"]) == (20, 26)
    lines = run("status")[1].splitlines()
    assert any(line.startswith("s20 ") and line.endswith(" failing") for line in lines)
    assert "s20 fails: ValueError: no" in lines
    assert "26 schedules in all: `aiotasks schedules`." in lines


def test_the_table_of_status_is_narrow(sql: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Output, "width", 100)
    add_schedule("shop.tasks.reports.of_each_day.send_all_of_them_to_everybody", ECHO, "*/7 3 * * mon-fri")
    add_schedule("b", ECHO, every=86_400)
    sql.execute("UPDATE aiotasks_schedule SET failures = 1, paused_at = now() WHERE name = 'b'")
    sql.execute("UPDATE aiotasks_schedule SET next_at = now() - interval '185 s', last_tick = now()")
    sql.execute("UPDATE aiotasks_schedule SET next_at = NULL, last_tick = NULL WHERE name = 'b'")
    text = run("status")[1]
    table = text[text.index("schedule  ") :].split("\n\n")[0].splitlines()
    assert max(map(len, table)) == 100
    assert [line.split() for line in table] == [
        ["schedule", "when", "next", "last", "skipped", "state"],
        ["b", "every", "day", "-", "-", "0", "paused"],
        [
            table[2].split()[0],
            *["*/7", "3", "*", "*", "mon-fri", "3", "min", "late", "0", "s", "ago", "0", "active"],
        ],
    ]
    assert table[2].startswith("...")
    assert table[2].split()[0].endswith(".send_all_of_them_to_everybody")


def test_check_finds_what_does_not_tick(sql: psycopg.Connection) -> None:
    assert check()[1]["schedules"]["verdict"] == "ok"
    for name in ("late", "failing", "fine"):
        add_schedule(name, ECHO, "@daily")
    assert check()[1]["schedules"]["message"] == "No tick is late or fails, of 3 schedules."
    sql.execute("UPDATE aiotasks_schedule SET next_at = now() - interval '5 min' WHERE name <> 'fine'")
    sql.execute("UPDATE aiotasks_schedule SET failures = 2, error = 'ValueError: no' WHERE name = 'failing'")
    finding = check()[1]["schedules"]
    assert finding["verdict"] == "warning"
    assert "Ticks can't be enqueued: 'failing' (ValueError: no)." in finding["message"]
    assert "No worker has enqueued ticks that have come: of late." in finding["message"]
    assert "Start a worker" in finding["remedy"]


def code(**values: Any) -> Discovered:
    return Discovered(**({"declarations": [], "problems": [], "failed": {}, "elsewhere": {}} | values))


def test_check_looks_only_at_what_ticks(database: str, sql: psycopg.Connection) -> None:
    for name in ("active", "paused", "stopped", "ahead"):
        declare(name)
    sql.execute("UPDATE aiotasks_schedule SET failures = 3, error = 'no' WHERE name <> 'ahead'")
    sql.execute("UPDATE aiotasks_schedule SET next_at = '2099-01-01Z' WHERE name = 'ahead'")
    pause_schedule("paused")
    sql.execute("UPDATE aiotasks_schedule SET stopped_at = now(), next_at = NULL WHERE name = 'stopped'")
    assert check()[1]["schedules"]["message"] == (
        "Ticks can't be enqueued: 'active' (no). "
        "The next tick is more than a day later than the times say: of ahead."
    )


def test_check_finds_what_the_code_cannot_declare() -> None:
    found = Schedules(datetime.now(UTC), [])
    verdict, message, remedy = judge_schedules(found, code(problems=[Problem("x", "Two are called x.")]))
    assert (verdict, message) == ("error", "Two are called x.")
    assert remedy.startswith("Fix the code")
    verdict, message, _ = judge_schedules(found, code(failed={"shop.tasks": ImportError("no celery")}))
    assert verdict == "warning"
    assert message == (
        "shop.tasks can't be imported, so workers don't declare its schedules, and stop none that it has "
        "declared before: ImportError: no celery."
    )
    verdict, message, _ = judge_schedules(found, code(elsewhere={"x": "shop.jobs"}))
    assert (verdict, message.endswith("so these don't count: 'x' in shop.jobs.")) == ("warning", True)


def test_workers_that_cannot_declare_are_named(sql: psycopg.Connection, enter: Any) -> None:
    said = "UPDATE aiotasks_worker SET schedules = %s WHERE id = %s"
    for pid, lease in ((1, 60.0), (2, 60.0), (3, -60.0)):
        sql.execute(said, [["a", " shop.jobs can't be imported: \x1b", None], enter(pid=pid, lease=lease)])
    sql.execute(said, [["a"], enter(pid=4)])
    assert [each["schedule_troubles"] for each in status()["workers"]] == [
        *[["shop.jobs can't be imported: \x1b"]] * 3,
        [],
    ]
    message = "Schedules aren't declared by host:1 and 1 more: "
    assert f'\n\n{message}"shop.jobs can\'t be imported: \\x1b"\n\n' in run("status")[1]
    assert run("schedules")[1].startswith(f"No schedule.\n\n{message}")
    assert check()[1]["schedules"]["verdict"] == "warning"
    assert message in check()[1]["schedules"]["message"]


def test_check_says_what_keeps_from_declaring_once() -> None:
    found = Schedules(datetime.now(UTC), [])
    error = ImportError("no celery")
    broken = code(
        failed={"shop.tasks": error, "shop.schedules": ImportError("no celery"), "a.tasks": OSError("no")},
        problems=[Problem("x", "x can't be used.", "ImportError: no celery"), Problem("y", "y is wrong.")],
    )
    assert [(each.modules, len(each.problems)) for each in broken.troubles()] == [
        (["shop.tasks", "shop.schedules"], 1),
        (["a.tasks"], 0),
        ([], 1),
    ]
    same = Problem("z", "z can't be used.", "ImportError: no celery")
    (both,) = code(problems=[*broken.problems[:1], same]).troubles()
    assert both.text() == "2 schedules can't be used ('x', 'z'), because of one error: ImportError: no celery"
    verdict, message, _ = judge_schedules(found, broken, kept=["n", "m"])
    assert (verdict, message.count("no celery")) == ("error", 1)
    assert "2 schedules that they have declared before go on: n, m." in message


def test_check_finds_names_of_operators_that_the_code_has(database: str) -> None:
    declaration = Declaration(name="x", task=tasks.echo, wanted=parse_wanted("@daily"))
    stored = ScheduleRow(declaration.row, False, None, 0, 0, None, None, None, None, None, None, None)
    found = Schedules(datetime.now(UTC), [stored])
    verdict, message, remedy = judge_schedules(found, code(declarations=[declaration]))
    assert verdict == "warning"
    assert "operators have added some with these names: x." in message
    assert "schedules remove NAME" in remedy
