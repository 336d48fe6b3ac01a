"""@periodic: what it takes, what it refuses, and the rows that schedules become."""

import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import wraps
from importlib import invalidate_caches
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from django.core.checks import run_checks
from django.tasks.exceptions import InvalidTask
from django.test import override_settings

from aiotasks import periodic, task
from aiotasks.conf import Options
from aiotasks.rows import Schedule
from aiotasks.schedules import declarations
from aiotasks.schedules.checks import check_schedules
from aiotasks.schedules.cron import Times
from aiotasks.schedules.declarations import declared, find_problems
from aiotasks.schedules.discovery import read_code

from . import tasks

MODULE = "tests.unit.tasks"
MODULES = [__name__, "tests.unit.run_again"]
HERE = {"SCHEDULES": [__name__]}
untyped: Any = periodic
LATER = datetime(2099, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test begins without schedules, and leaves none to workers of other tests."""
    monkeypatch.setattr(declarations, "_entries", {})


@pytest.fixture(autouse=True)
def backends(settings: Any) -> None:
    settings.TASKS = {
        "default": {
            "BACKEND": "aiotasks.backend.PostgresBackend",
            "QUEUES": ["default", "emails"],
            "OPTIONS": HERE,
        },
        "other": {"BACKEND": "aiotasks.backend.PostgresBackend", "OPTIONS": HERE},
        "dummy": {"BACKEND": "django.tasks.backends.dummy.DummyBackend"},
    }


def rows(backend: str = "default") -> dict[str, Schedule]:
    assert find_problems(backend, MODULES) == []
    return {each.name: each.row for each in declared(backend, MODULES)}


def test_a_schedule_with_its_defaults() -> None:
    assert periodic("*/5 * * * *")(tasks.good) is tasks.good
    (declaration,) = declared("default", MODULES)
    row = declaration.row
    assert declaration.name == row.name == row.task_path == f"{MODULE}.good"
    assert (row.expression, row.timezone) == ("*/5 * * * *", "America/Chicago")  # Django's TIME_ZONE
    assert (row.missed, row.missed_within, row.overlap, row.jitter) == ("last", None, "skip", None)
    assert (row.queue_name, row.lane, row.priority, row.args, row.kwargs) == (
        "default",
        "loop",
        0,
        "[]",
        "{}",
    )
    assert (row.unique_key, row.unique_period, row.unique_waiting) == (None, None, None)
    assert declared("other", MODULES) == []


def test_all_that_can_be_said() -> None:
    periodic(
        "0 3 * * mon",
        timezone="Europe/Berlin",
        name="weekly",
        args=(1, [2]),
        kwargs={"a": b"b"},
        missed="all",
        within=timedelta(hours=1),
        overlap="queue",
        jitter=timedelta(seconds=30),
    )(tasks.anything.using(queue_name="emails", priority=7, expires=60, metadata={"m": 1}))
    row = rows()["weekly"]
    assert Times(row.expression, row.timezone) == Times("0 3 * * mon", "Europe/Berlin")
    assert (row.missed, row.missed_within, row.overlap, row.jitter) == ("all", 3600.0, "queue", 30.0)
    assert (json.loads(row.args), json.loads(row.kwargs)) == ([1, [2]], {"a": "b"})
    assert (row.queue_name, row.priority, row.expires) == ("emails", 7, 60.0)
    assert row.metadata is not None
    assert json.loads(row.metadata) == {"m": 1}


def test_an_interval() -> None:
    periodic(every=timedelta(minutes=5), jitter=0)(tasks.good)
    row = rows()[f"{MODULE}.good"]
    assert (row.expression, row.timezone, row.jitter) == ("@every 300", "UTC", None)


def test_it_may_stand_below_the_decorator_of_the_task() -> None:
    function = tasks.good.func
    assert periodic("@daily", name="a")(periodic("@hourly")(function)) is function
    assert set(rows()) == {"a", f"{MODULE}.good"}


def test_a_decorator_may_stand_between_two_of_them() -> None:
    function = tasks.good.func
    periodic("@hourly", name="below")(function)

    @wraps(function)
    def logged() -> None:
        function()

    periodic("@daily", name="above")(logged)
    assert set(rows()) == {"above", "below"}


def test_several_schedules_of_one_task_have_names() -> None:
    periodic("@daily")(tasks.good)
    periodic("@hourly", name="hourly")(tasks.good)
    with pytest.raises(
        InvalidTask, match=r"several schedules of the name .*without name=…. Give each a name"
    ):
        periodic("@weekly")(tasks.good)
    with pytest.raises(InvalidTask, match=r"several schedules of the name 'hourly'\. Give each a name"):
        periodic("@weekly", name="hourly")(tasks.good)
    periodic("@weekly")(tasks.good.using(backend="other"))
    assert set(rows()) == {f"{MODULE}.good", "hourly"}
    assert rows("other")[f"{MODULE}.good"].expression == "@weekly"


def test_a_module_that_is_run_again_declares_anew() -> None:
    source = (
        "import aiotasks\n"
        "@aiotasks.periodic('@daily')\n"
        "@aiotasks.task\n"
        "def work(): ...\n"
        "@aiotasks.task\n"
        "@aiotasks.periodic('@hourly', name='hourly')\n"
        "def other(): ...\n"
    )
    module = ModuleType("tests.unit.run_again")
    sys.modules[module.__name__] = module
    try:
        for _ in range(2):
            exec(source, vars(module))
        assert set(rows()) == {"tests.unit.run_again.work", "hourly"}
    finally:
        del sys.modules[module.__name__]


def test_a_key_of_the_task_itself_says_what_ticks_do() -> None:
    periodic("@daily", name="a")(tasks.with_policies)
    row = rows()["a"]
    assert (row.overlap, row.unique_key, row.unique_period, row.unique_waiting) == (None, "key", None, True)
    with pytest.raises(InvalidTask, match=r"has a unique_key, .*\. Leave out the overlap \('skip'\)"):
        periodic("@daily", name="b", overlap="skip")(tasks.with_policies)
    periodic("@daily", name="c")(tasks.anything.using(unique_key=lambda *args, **kwargs: None))
    assert (rows()["c"].overlap, rows()["c"].unique_key) == ("skip", None)


def test_its_tasks_have_the_limit_of_their_arguments() -> None:
    for number, (made, expected) in enumerate(
        [
            (tasks.in_line, ("tests.unit:7", "stop")),
            (tasks.in_line.using(limit_key="all"), ("tests.unit:all", "stop")),
            (tasks.anything, (None, None)),
        ]
    ):
        periodic("@daily", name=f"{number}", args=[7])(made)
        assert (rows()[f"{number}"].limit_key, rows()[f"{number}"].ordered) == expected


@pytest.mark.parametrize(
    ("declare", "words"),
    [
        (lambda: untyped("*/5 * * *")(tasks.good), "has 4 fields"),
        (lambda: untyped("@daily", timezone="Europe/Bern")(tasks.good), "such as 'Europe/Berlin', not"),
        (lambda: untyped()(tasks.good), "either a cron expression or every"),
        (lambda: untyped("@daily", every=5)(tasks.good), "either a cron expression or every"),
        (lambda: untyped(every=0.5)(tasks.good), "every must be seconds or a timedelta, from 1 to 366 days"),
        (lambda: untyped(every=5, timezone="Asia/Tokyo")(tasks.good), "has no timezone"),
        (lambda: untyped(tasks.good), r"write @periodic\('"),
        (lambda: untyped(tasks.good.func), r"write @periodic\('"),
        (lambda: untyped("@daily", name="")(tasks.good), "name must be a text of 1 to 500"),
        (lambda: untyped("@daily", name="x" * 501)(tasks.good), "name must be a text of 1 to 500"),
        (lambda: untyped("@daily", name=" x")(tasks.good), "name must be printable, without spaces around"),
        (lambda: untyped("@daily", name="a\nb")(tasks.good), "name must be printable"),
        (
            lambda: untyped("@daily", missed="never")(tasks.good),
            "missed must be one of 'last', 'skip', 'all'",
        ),
        (
            lambda: untyped("@daily", overlap="x")(tasks.good),
            "overlap must be one of 'skip', 'queue', 'allow'",
        ),
        (lambda: untyped("@daily", within=-1)(tasks.good), "within must be seconds or a timedelta"),
        (lambda: untyped("@daily", within=0.9)(tasks.good), "within must be .* from 1 to 366 days"),
        (
            lambda: untyped(every=60, jitter=61)(tasks.good),
            "jitter must not be longer than .* of 60 s",
        ),
        (lambda: untyped("@daily", jitter=math.nan)(tasks.good), "jitter must be .* from 0 to a day"),
        (lambda: untyped("@daily", args=5)(tasks.good), "args must be a list"),
        (lambda: untyped("@daily", args="ab")(tasks.good), "args must be a list"),
        (lambda: untyped("@daily", kwargs=[1])(tasks.good), "kwargs must be a dict"),
        (lambda: untyped("@daily", args=[object()])(tasks.anything), r"args\[0\]"),
        (lambda: untyped("@daily", args=[1])(tasks.good), "arguments of the schedule don't fit: .*takes 0"),
        (lambda: untyped("@daily")(tasks.good.using(run_after=LATER)), "can't have a run_after"),
        (lambda: untyped("@daily")(5), "over or below @task, and can't decorate 5"),
        (lambda: untyped("@daily")(Path), "over or below @task"),
    ],
)
def test_what_is_refused_by_the_decorator(declare: Callable[[], Any], words: str) -> None:
    with pytest.raises(InvalidTask, match=words):
        declare()
    assert declared("default", MODULES) == []


def test_what_only_a_look_at_the_whole_code_shows() -> None:
    """Nothing of it is declared, and the rest is."""
    periodic("@daily", name="good")(tasks.good)
    periodic("@daily", name="lost")(task(tasks.function))
    periodic("@daily", name="never made a task")(tasks.backoff)
    periodic("@daily", name="unfit", args=[1])(tasks.plain.func)
    periodic("@daily", name="twice")(tasks.good)
    periodic("@hourly", name="twice")(tasks.sync_good)
    periodic("@daily", name="elsewhere")(tasks.sync_good.using(backend="dummy"))
    assert [each.name for each in declared("default", MODULES)] == ["good"]
    problems = find_problems("default", MODULES)
    assert [problem.name for problem in problems] == ["lost", "never made a task", "unfit", "twice"]
    texts = [problem.text for problem in problems]
    assert "Schedule 'lost' of" in texts[0]
    assert "No worker could run this task" in texts[0]
    assert "Schedule 'never made a task' of tests.unit.tasks.backoff can't be used: " in texts[1]
    assert "it is a function, not a Task" in texts[1]
    assert "The arguments of the schedule don't fit" in texts[2]
    assert "2 schedules have the name 'twice', of " in texts[3]
    messages = [message for message in run_checks() if message.id == "aiotasks.E012"]
    assert [message.msg for message in messages] == texts
    assert all(message.is_serious() for message in messages)


def test_a_key_that_is_held_until_the_next_tick() -> None:
    """Whether that one is left out depends on milliseconds."""
    for name, seconds in {"shorter": 299, "as long": 300, "longer": 86_400}.items():
        owner = replace(tasks.good, unique_key=name, unique_for=float(seconds))
        periodic(every=300, name=name)(owner)
        periodic("*/5 0 * * *", name=f"cron {name}")(owner)
    messages = [message for message in run_checks() if message.id == "aiotasks.W006"]
    names = [message.msg.split("'")[1] for message in messages]
    assert names == ["as long", "cron as long", "longer", "cron longer"]
    assert "'as long' ticks every 300 s, and its task holds its unique_key for 300 s" in messages[0].msg


def options(**given: Any) -> Options:
    return Options.from_params("default", {"OPTIONS": given})


@pytest.fixture
def an_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A site of two apps, one of which has a module that can't be imported."""
    declare = "import aiotasks, an_app.tasks\naiotasks.periodic('@daily', name='{}')(an_app.tasks.t)"
    for name, source in {
        "an_app/__init__.py": "",
        "an_app/tasks.py": "import aiotasks as a\n@a.periodic('@daily', name='t')\n@a.task\ndef t(): ...",
        "an_app/schedules.py": "from . import helpers\nhelpers.daily('s')",
        "an_app/helpers.py": "def daily(name):\n    "
        + declare.format("' + name + '").replace("\n", "\n    "),
        "an_app/more.py": declare.format("m"),
        "a_broken_app/__init__.py": "",
        "a_broken_app/tasks.py": declare.format("half") + "\nimport a_module_that_is_nowhere",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for module in [name for name in sys.modules if name.startswith(("an_app", "a_broken_app", "a_module"))]:
        del sys.modules[module]


def read(**given: Any) -> tuple[set[str], list[str], dict[str, str]]:
    """The schedules that count, the modules that fail, and those elsewhere."""
    code = read_code("default", options(**given))
    return {each.name for each in code.declarations}, [*code.failed], {**code.elsewhere}


def test_modules_that_declare_are_imported(an_app: Path, settings: Any) -> None:
    with override_settings(INSTALLED_APPS=["aiotasks", "an_app"]):
        assert read(SCHEDULES=False) == (set(), [], {})
        assert read() == ({"t", "s"}, [], {})
        assert read(SCHEDULES=["an_app.more"]) == ({"m"}, [], {"t": "an_app.tasks", "s": "an_app.helpers"})
        assert read(SCHEDULES=["an_app"])[0] == {"t", "s", "m"}
        # It was imported by chance: a worker that hasn't imported it would stop what this one declares.
        assert read() == ({"t", "s"}, [], {"m": "an_app.more"})
        settings.TASKS = {"default": {"BACKEND": "aiotasks.backend.PostgresBackend"}}
        (message,) = check_schedules()
        assert (message.id, message.msg) == (
            "aiotasks.W007",
            "an_app.more declares schedules that don't count, because workers don't import it for them: m",
        )

    # A module that can't be imported may be later.
    with override_settings(INSTALLED_APPS=["aiotasks", "a_broken_app", "an_app"]):
        for _ in range(2):
            assert read() == ({"t", "s"}, ["a_broken_app.tasks"], {"m": "an_app.more"})
        message, _ = check_schedules()
        assert message.id == "aiotasks.W005"
        assert message.msg.startswith("a_broken_app.tasks can't be imported")
        assert "'a_module_that_is_nowhere'" in message.msg
        (an_app / "an_app" / "broken.py").write_text(
            "import an_app.tasks, aiotasks\n"
            "@aiotasks.periodic('@daily', name='x')\ndef x(): ...\n"
            "@aiotasks.periodic('@daily', name='y')\ndef y(): ...\n"
            "import a_module_that_is_nowhere"
        )
        (an_app / "an_app" / "users.py").write_text("import an_app.broken")
        modules = {"SCHEDULES": ["an_app", "an_app.broken", "an_app.users"]}
        settings.TASKS = {"default": {"BACKEND": "aiotasks.backend.PostgresBackend", "OPTIONS": modules}}
        (message,) = [each for each in check_schedules() if each.id != "aiotasks.W007"]
        assert (message.id, message.msg) == (
            "aiotasks.E012",
            "an_app.broken, an_app.users can't be imported, so workers don't declare their schedules, and "
            "stop none that they have declared before, and 2 more can't be used ('x', 'y'): "
            "ModuleNotFoundError: No module named 'a_module_that_is_nowhere'",
        )
        (an_app / "a_module_that_is_nowhere.py").touch()
        invalidate_caches()
        assert read() == ({"t", "s", "half"}, [], {"m": "an_app.more"})
