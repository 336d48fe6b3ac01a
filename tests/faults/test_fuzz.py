"""Fuzz by hypothesis: command lines, OPTIONS, and rows that somebody has written with psql."""

import asyncio
import logging
from io import StringIO
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import utils
from django.tasks.exceptions import TaskResultDoesNotExist
from hypothesis import HealthCheck, Phase, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import aiotasks
from aiotasks.conf import Options
from aiotasks.exceptions import InvalidRow, UnknownTask
from aiotasks.store.loop import close_pools
from aiotasks.worker.process import cli
from aiotasks.worker.process.standalone import Standalone
from tests.site import default_task_backend
from tests.worker.harness import Configure, Ledger, until


def repeatable(examples: int) -> hypothesis_settings:
    """The same examples at every run, with fixtures that hold nothing of an example."""
    return hypothesis_settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


# --- The command line

OPTIONS = [
    *("--backend", "--queue", "--concurrency", "--threads", "--processes", "--until-empty", "--reload"),
    *("--grace", "--supervised", "--settings", "--help", "-h", "--", "--nothing"),
]
words = st.one_of(
    st.sampled_from(OPTIONS),
    st.sampled_from(
        ["default", "nowhere", "0", "1", "7", "-1", "1e999", "nan", "1_0", "٣", "", " ", "9" * 5000]
    ),
    # What argv can hold: any text without NUL.
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
)


def serve(*args: Any) -> int:
    """In the worker's place: whatever the options were, it could be made."""
    return 0


class Nobody:
    """In the supervisor's place."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    async def run(self) -> int:
        return 0


@repeatable(200)
@given(argv=st.lists(words, max_size=6))
@example(argv=["--supervised", "9" * 100])
@example(argv=["--settings", "..x"])
@example(argv=["--concurrency", "0", "--threads", "0"])
def test_a_command_line_is_run_or_refused_in_a_sentence(
    database: str, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    if "--supervised" in argv and not {"9" * 100, "9" * 5000} & set(argv):
        return  # the number of a file that is open here
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Standalone, "run", serve)
        patch.setattr(cli, "Supervisor", Nobody)
        patch.setattr("sys.path", [])
        patch.setenv("DJANGO_SETTINGS_MODULE", "tests.settings")
        patch.setattr("sys.argv", ["worker"])
        try:
            code: object = cli.main(argv)
        except SystemExit as error:  # argparse's
            code = error.code
    said = capsys.readouterr().err
    assert code in (0, 1, 2)
    if code == 1:
        assert said.startswith("aiotasks: ")
        assert said.count("\n") == 1 or "\n" in "".join(argv)
    assert "Traceback" not in said


# --- OPTIONS

values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
    lambda children: st.one_of(
        st.lists(children, max_size=3),
        st.dictionaries(st.text(), children, max_size=3),
        st.tuples(children),
        st.frozensets(st.integers(), max_size=2),
    ),
    max_leaves=5,
)
names = st.one_of(
    st.sampled_from(sorted(name.upper() for name in Options.__dataclass_fields__)),
    values.filter(lambda value: value.__hash__ is not None and not isinstance(value, tuple)),
)


@repeatable(500)
@given(params=st.one_of(st.dictionaries(names, values, max_size=3), values))
@example(params={"NOTIFY": [[[]]]})
def test_options_are_taken_or_refused_by_name(settings: Any, params: Any) -> None:
    try:
        Options.from_params("mails", {"OPTIONS": params})
    except ImproperlyConfigured as error:
        told = str(error)
        assert "TASKS['mails']['OPTIONS']" in told
        assert len(told) < 2000


@pytest.mark.parametrize("value", [10**5000, [10**5000]], ids=["number", "list"])
def test_a_value_that_can_not_be_shown_is_told_by_its_option(value: Any) -> None:
    with pytest.raises(
        ImproperlyConfigured, match=r"\['MAX_CRASHES'\] must be a whole number .* not a (int|list)"
    ):
        Options.from_params("mails", {"OPTIONS": {"MAX_CRASHES": value}})


# --- Rows

ids = [str(UUID(int=n)) for n in range(1, 4)]
times = [
    "now()",
    *(f"'{time}'" for time in ("infinity", "-infinity", "20000-01-01", "0044-03-15 BC", "1970-01-01")),
]
maybe_times = ["NULL", "NULL", *times]
# As SQL, which keeps the examples readable.
deep = "(repeat('[', 2000) || repeat(']', 2000))::json"
long = "('[' || repeat('9', 5000) || ']')::json"
smallints = st.one_of(st.just(0), st.sampled_from([-32768, -1, 32767]), st.integers(-32768, 32767)).map(str)
ERRORS = [
    *("'{}'", "'{NULL}'", "ARRAY['5'::json]", "ARRAY['\"x\"'::json]", "ARRAY['{}'::json]"),
    "ARRAY[ARRAY['{}'::json]]",
    """ARRAY['{"class": 5, "traceback": null}'::json]""",
    """ARRAY['{"class": "builtins.ValueError", "traceback": "text"}'::json]""",
]


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def among(*texts: str) -> st.SearchStrategy[str]:
    return st.sampled_from([text if text in (deep, long) else quoted(text) for text in texts])


# Each column's values as SQL.
columns: dict[str, st.SearchStrategy[str]] = {
    "backend": among("default", "default", "default", "", "x'y\"z"),
    "queue_name": among("default", "default", "", "x'; --", "a\nCRITICAL forged", "ü" * 200, "[]"),
    "task_path": among(
        *["tests.worker.tasks.add", "tests.worker.tasks.add_sync", "tests.worker.tasks.note"] * 2,
        *("os.getcwd", "subprocess.call", "", ".", "..x", "no.such\nCRITICAL forged", "x" * 300, "a b.c'd"),
        *("tests.worker.tasks", "tests.worker.tasks.record", "tests.worker.tasks.add.func"),
    ),
    "lane": among("loop", "loop", "thread", "thread", "", "LOOP", "x'; --", "y" * 300),
    "priority": smallints,
    "status": among(*["READY", "RUNNING", "SCHEDULED"] * 2, "SUCCESSFUL", "FAILED", "", "ready", "x'y"),
    "args": among("[]", "[1, 2]", "5", '"ab"', '{"a": 1}', "null", "true", deep, long, "[1e999]"),
    "kwargs": among("{}", "{}", "[]", "5", '"x"', "null", '{"": 1}', '{"self": 1}', '{"a": 1, "a": 2}', deep),
    "return_value": st.one_of(st.just("NULL"), among("5", "null", deep, long)),
    "errors": st.sampled_from(ERRORS),
    "worker_ids": st.sampled_from(
        ["'{}'", "'{NULL}'", f"'{{{ids[0]}}}'", f"'{{{{{ids[0]}}},{{{ids[1]}}}}}'", f"'[5:5]={{{ids[0]}}}'"]
    ),
    "crashes": smallints,
    "max_crashes": st.one_of(st.just("NULL"), smallints),
    "keep_result": st.one_of(
        st.just("NULL"), among("NaN", "infinity", "-infinity", "-1", "0", "1e308", "-1e308", "1e-320")
    ),
    "claim_id": st.sampled_from(["NULL", quoted(ids[0])]),
    "worker_id": st.sampled_from(["NULL", quoted(ids[1]), "(SELECT id FROM aiotasks_worker LIMIT 1)"]),
    "enqueued_at": st.sampled_from(times),
    **{
        name: st.sampled_from(maybe_times)
        for name in ("run_after", "ready_at", "started_at", "last_attempted_at", "finished_at")
    },
    **{name: st.sampled_from(maybe_times) for name in ("cancel_requested_at", "unknown_since")},
}


def whole(row: dict[str, str]) -> dict[str, str]:
    """With the time that the table demands for the status."""
    needed = {"'READY'": "ready_at", "'SCHEDULED'": "run_after"}.get(row["status"], "finished_at")
    return {**row, needed: "now()"} if row[needed] == "NULL" else row


rows = st.fixed_dictionaries(columns).map(whole)

HEALTHY: dict[str, str] = {
    "backend": "'default'",
    "queue_name": "'default'",
    "task_path": "'tests.worker.tasks.add'",
    "lane": "'loop'",
    "priority": "0",
    "status": "'READY'",
    "args": "'[1, 2]'",
    "kwargs": "'{}'",
    "errors": "'{}'",
    "worker_ids": "'{}'",
    "crashes": "0",
    "enqueued_at": "now()",
    "ready_at": "now()",
}
# Each comes to its end by another statement that it shares with all others.
NEIGHBOURS: list[dict[str, str]] = [
    HEALTHY,
    {**HEALTHY, "task_path": "'tests.worker.tasks.add_sync'", "lane": "'thread'"},
    {**HEALTHY, "status": "'SCHEDULED'", "run_after": "now()", "ready_at": "NULL"},
    {
        **HEALTHY,
        "status": "'RUNNING'",
        "worker_id": quoted(ids[1]),
        "claim_id": quoted(ids[2]),
        "worker_ids": f"'{{{ids[1]}}}'",
    },
]


# The last has the scheduler look.
PAYLOADS = [
    "",
    "[",
    "5",
    "[[]]",
    '["default", 5, "x"]',
    "[" * 3000,
    '["default", "x", 1e999]',
    '["default", "default", 0]',
]


def insert(connection: psycopg.Connection, row: dict[str, str]) -> str:
    id = str(uuid4())
    names = ", ".join(["id", *row])
    connection.execute(
        f"INSERT INTO aiotasks_task ({names}) VALUES ({', '.join([quoted(id), *row.values()])})"
    )
    return id


QUICK = {"LEASE_TIMEOUT": 0.5, "POLL_INTERVAL": 0.1, "COMMAND_TIMEOUT": 5.0}


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@repeatable(8)
@given(hostile=st.lists(rows, min_size=40, max_size=40))
def test_a_row_that_somebody_wrote_harms_no_other(
    configure: Configure, ledger: Ledger, caplog: pytest.LogCaptureFixture, hostile: list[dict[str, str]]
) -> None:
    configure(**QUICK)
    caplog.clear()
    ledger.connection.execute("TRUNCATE aiotasks_task, aiotasks_worker")
    healthy: list[str] = []
    strange: list[str] = []

    def finished() -> bool:
        return all(ledger.task(id).status == "SUCCESSFUL" for id in healthy)

    async def look_up(id: str) -> Any:
        return await default_task_backend.aget_result(id)

    async def main() -> None:
        async with aiotasks.Worker() as worker:
            ended = asyncio.ensure_future(worker.wait())
            await until(ledger.workers)
            with ledger.connection.transaction():
                strange.extend(insert(ledger.connection, row) for row in hostile)
                healthy.extend(insert(ledger.connection, row) for row in NEIGHBOURS)
                for payload in PAYLOADS:
                    ledger.connection.execute("SELECT pg_notify('aiotasks', %s)", [payload])
            await until(lambda: ended.done() or finished_by_count())
            assert finished()
            found = await asyncio.gather(*map(look_up, [*strange, *healthy]), return_exceptions=True)
            check(found)
            assert not ended.done()
        await ended
        await close_pools()

    def finished_by_count() -> bool:
        query = "SELECT count(*) FROM aiotasks_task WHERE id = ANY(%s) AND status = 'SUCCESSFUL'"
        return bool(ledger.value(query, healthy) == len(healthy))

    def check(found: list[Any]) -> None:
        for result in found[: len(strange)]:
            if isinstance(result, BaseException):
                assert isinstance(
                    result, InvalidRow | UnknownTask | TaskResultDoesNotExist | utils.DataError
                ), repr(result)
        assert [result.return_value for result in found[len(strange) :]] == [3] * len(healthy)

    with caplog.at_level(logging.INFO, "aiotasks"):
        asyncio.run(main())
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("aiotasks")]
    # But for the stack of a loop that the machine has held up.
    blocked = "The event loop is blocked"
    assert not any("\n" in message for message in ours if not message.startswith(blocked))

    def from_sync(id: str) -> Any:
        try:
            return default_task_backend.get_result(id)
        except Exception as error:
            return error

    check([from_sync(id) for id in [*strange, *healthy]])
    for arguments in (["status"], ["status", "--json"], ["prune"], ["prune", "--older-than=0s"]):
        call_command("aiotasks", *arguments, stdout=StringIO())


SHAPES = [
    ("5", "{}"),
    ('"ab"', "{}"),
    ('{"a": 1, "b": 2}', "{}"),
    ("null", "{}"),
    ("[]", "[]"),
    ("[]", '"x"'),
]


@pytest.mark.parametrize(("args", "kwargs"), SHAPES)
async def test_arguments_of_another_shape_fail_their_task_by_its_id(
    configure: Configure, ledger: Ledger, caplog: pytest.LogCaptureFixture, args: str, kwargs: str
) -> None:
    configure(**QUICK)
    row = {**HEALTHY, "args": quoted(args), "kwargs": quoted(kwargs)}
    id, neighbour = insert(ledger.connection, row), insert(ledger.connection, HEALTHY)
    with caplog.at_level(logging.INFO, "aiotasks"):
        async with aiotasks.Worker():
            await until(lambda: ledger.statuses() == {"FAILED": 1, "SUCCESSFUL": 1})
    (error,) = ledger.task(id).errors
    assert error["class"] == "aiotasks.exceptions.InvalidRow"
    assert any(id in record.getMessage() for record in caplog.records if record.name == "aiotasks.worker")
    found = await asyncio.gather(
        default_task_backend.aget_result(id),
        default_task_backend.aget_result(neighbour),
        return_exceptions=True,
    )
    assert isinstance(found[0], InvalidRow)
    assert id in str(found[0])
    assert not isinstance(found[1], BaseException)
    assert found[1].return_value == 3
