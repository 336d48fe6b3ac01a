"""`python -m aiotasks.worker` and `manage.py aiotasks worker`, as processes."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from aiotasks.worker.process import cli
from tests.conftest import ROOT
from tests.site import default_task_backend

from . import tasks
from .harness import TIMEOUT, Configure, Ledger, Process, Start, wait_until

OF_LITTLE_PATIENCE = (
    "from aiotasks.worker.process import cli; cli.DATABASE_TIMEOUT = 0.5; raise SystemExit(cli.main())"
)
COMMANDS = {"module": ["-m", "aiotasks.worker"], "manage": ["-m", "django", "aiotasks", "worker"]}


@pytest.mark.parametrize("command", COMMANDS)
def test_it_says_what_it_serves_and_serves_it(start: Start, ledger: Ledger, command: str) -> None:
    process = start(
        *COMMANDS[command],
        *("--backend", "default", "--queue", "mails", "--queue", "default"),
        *("--concurrency", "7", "--threads", "3", "--grace", "1.5"),
        queues=["default", "mails", "other"],
        options={"LEASE_TIMEOUT": 12, "POOL_MAX_SIZE": 4, "ASYNC_DB_THREADS": 2, "POLL_INTERVAL": 2.5},
    )
    log = process.wait_for("connections: at most")
    assert re.search(
        r"INFO aiotasks.worker: worker [-0-9a-f]{36} serves backend 'default', queues default, mails\n", log
    )
    assert "loop: 7 coroutine tasks at a time on uvloop\n" in log
    assert "threads: 3 sync tasks at a time\n" in log
    assert "wake-ups: LISTEN, polling within 2.5 s\n" in log
    assert "lease: 12 s, renewed every 2 s\n" in log
    assert (
        "connections: at most 11 (pool 4, listener 1, heartbeat 1, ORM threads 2, sync threads 3), one more "
        "while a renewal hangs\n"
    ) in log
    (worker,) = ledger.rows("SELECT * FROM aiotasks_worker")
    assert (worker.pid, worker.concurrency, worker.threads) == (process.pid, 7, 3)
    assert worker.queues == ["default", "mails"]
    mail = tasks.add.using(queue_name="mails").enqueue(1, 2)
    other = tasks.add.using(queue_name="other").enqueue(1, 2)
    wait_until(lambda: ledger.task(mail.id).status == "SUCCESSFUL")
    assert ledger.task(other.id).status == "READY"
    assert process.stop() == 0
    assert "stopping, running=0 grace=1.5" in process.log
    assert ledger.workers() == 0


def test_until_empty(start_worker: Start, ledger: Ledger) -> None:
    """It leaves when nothing is left in what it serves, and only then."""
    default_task_backend.enqueue_many(tasks.add, [((1, 2), {})] * 50)
    default_task_backend.enqueue_many(tasks.add_sync, [((1, 2), {})] * 5)
    later = tasks.add.using(run_after=timezone.now() + timedelta(days=1)).enqueue(1, 2)
    due = tasks.add.using(run_after=timezone.now() + timedelta(days=1)).enqueue(1, 2)
    ledger.connection.execute("UPDATE aiotasks_task SET run_after = now() WHERE id = %s", [due.id])
    elsewhere = tasks.add.using(queue_name="elsewhere").enqueue(1, 2)
    worker = start_worker("--until-empty", "--queue", "default", ready=False)
    assert worker.wait() == 0
    assert ledger.statuses() == {"SUCCESSFUL": 56, "SCHEDULED": 1, "READY": 1}
    assert ledger.task(later.id).status == "SCHEDULED"
    assert ledger.task(elsewhere.id).status == "READY"
    assert ledger.workers() == 0


def test_until_empty_waits_for_what_others_run(start_worker: Start, ledger: Ledger) -> None:
    other = start_worker()
    tasks.work.enqueue(2.0)
    wait_until(lambda: ledger.events("start") >= 1)
    # One that serves the other lane alone has nothing to wait for.
    lane = start_worker("--until-empty", "--concurrency", "0", ready=False)
    waiting = start_worker("--until-empty")
    assert lane.wait() == 0
    assert waiting.is_alive() or ledger.statuses() == {"SUCCESSFUL": 1}
    assert waiting.wait() == 0
    assert ledger.statuses() == {"SUCCESSFUL": 1}
    assert other.stop() == 0


def complaint(process: Process, code: int = 1) -> str:
    """Wait for a worker that gives up at once; returns its last line."""
    assert process.wait() == code, process.log
    assert "Traceback" not in process.log
    return process.log.splitlines()[-1]


MISTAKES: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "alias": (["--backend", "nowhere"], {}, "TASKS has no backend 'nowhere'; it has 'default', 'dummy'."),
    "no backend of ours": (
        ["--backend", "dummy"],
        {},
        "TASKS['dummy'] is a DummyBackend, not an aiotasks.backend.PostgresBackend",
    ),
    "queue": (
        ["--queue", "nowhere"],
        {"queues": ["default", "mails"]},
        "Queue 'nowhere' isn't in TASKS['default']['QUEUES'] (default, mails).",
    ),
    "empty queue": (["--queue", ""], {}, "Queue '' isn't in"),
    "nothing to run": (
        ["--concurrency", "0", "--threads", "0"],
        {},
        "A worker with concurrency 0 and threads 0 would run nothing.",
    ),
    "option": (
        [],
        {"options": {"LEASE_TIMOUT": 3}},
        "TASKS['default']['OPTIONS'] has no option 'LEASE_TIMOUT'. The options are ",
    ),
    "option's value": (
        [],
        {"options": {"LEASE_TIMEOUT": "soon"}},
        "TASKS['default']['OPTIONS']['LEASE_TIMEOUT'] must be a number of seconds from 0.5 to 86400, "
        "not 'soon'.",
    ),
    "database alias": (
        [],
        {"options": {"DATABASE": "nowhere"}},
        "TASKS['default']: DATABASE 'nowhere' isn't an alias of DATABASES (which has default).",
    ),
    "database": (
        [],
        {"env": {"AIOTASKS_DB_NAME": "nowhere"}},
        "The database of DATABASES['default'] doesn't exist: database \"nowhere\" does not exist.",
    ),
    "user": (
        [],
        {"env": {"AIOTASKS_DB_USER": "nobody_there"}},
        "PostgreSQL refuses the user or password of DATABASES['default']: ",
    ),
    "tables": (
        [],
        {"env": {"AIOTASKS_DB_NAME": "postgres"}},
        "The tables of aiotasks are missing in DATABASES['default']: "
        "run `manage.py migrate --database default`.",
    ),
    "settings": (
        ["--settings", "nowhere.at_all"],
        {},
        "the settings 'nowhere.at_all' can't be loaded: No module named 'nowhere'",
    ),
    "no settings": (
        [],
        {"env": {"DJANGO_SETTINGS_MODULE": ""}},
        "no settings: give --settings or set DJANGO_SETTINGS_MODULE.",
    ),
}


# A process takes a second to start: what needs none of its own is asked in this one.
ASIDE = ["alias", "database", "user", "tables", "settings", "no settings"]


@pytest.mark.parametrize("mistake", ASIDE)
def test_a_mistake_is_said_in_one_sentence(start: Start, ledger: Ledger, mistake: str) -> None:
    arguments, keywords, sentence = MISTAKES[mistake]
    process = start("-m", "aiotasks.worker", *arguments, **keywords)
    assert complaint(process).startswith(f"aiotasks: {sentence}")
    assert len(process.log.splitlines()) == 1


@pytest.mark.parametrize("mistake", [name for name in MISTAKES if name not in ASIDE])
def test_a_mistake_is_said_before_anything_runs(
    configure: Configure, settings: Any, capsys: pytest.CaptureFixture[str], mistake: str
) -> None:
    arguments, keywords, sentence = MISTAKES[mistake]
    configure(keywords.get("queues"), **keywords.get("options", {}))
    settings.TASKS |= {"dummy": {"BACKEND": "django.tasks.backends.dummy.DummyBackend"}}
    assert cli.main(arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"aiotasks: {sentence}")
    assert said.count("\n") == 1


def test_manage_says_a_mistake_too(start: Start, ledger: Ledger) -> None:
    process = start(*COMMANDS["manage"], "--backend", "nowhere")
    assert complaint(process) == "aiotasks: TASKS has no backend 'nowhere'; it has 'default', 'dummy'."


WRONG = [
    (["--concurrency", "many"], "argument --concurrency: 'many' isn't a whole number of 0 or more"),
    (["--threads", "-1"], "argument --threads: '-1' isn't a whole number of 0 or more"),
    (["--grace", "nan"], "argument --grace: 'nan' isn't a number of seconds from 0 to 86400"),
    (["--proceses", "4"], "unrecognized arguments: --proceses 4"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG)
def test_a_wrong_argument_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(arguments)
    assert exit.value.code == 2
    assert said in capsys.readouterr().err


def test_manage_refuses_a_wrong_argument_too(start: Start) -> None:
    assert WRONG[0][1] in complaint(start(*COMMANDS["manage"], *WRONG[0][0]), code=2)


def test_settings_and_the_current_folder(
    start: Start, ledger: Ledger, tmp_path: Path, worker_env: dict[str, str]
) -> None:
    """--settings wins over the environment, and its module is found where manage.py would."""
    (tmp_path / "mysettings.py").write_text("from tests.worker.settings import *\n")
    tasks.add.enqueue(1, 2)
    output = subprocess.run(
        [sys.executable, "-m", "aiotasks.worker", "--settings", "mysettings", "--until-empty"],
        env={**worker_env, "DJANGO_SETTINGS_MODULE": "nowhere"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert output.returncode == 0, output.stderr
    assert ledger.statuses() == {"SUCCESSFUL": 1}


def test_an_unknown_tables_version_is_said(start: Start, ledger: Ledger) -> None:
    ledger.connection.execute("ALTER TABLE aiotasks_task RENAME COLUMN run_after TO gone")
    try:
        said = complaint(start("-m", "aiotasks.worker"))
    finally:
        ledger.connection.execute("ALTER TABLE aiotasks_task RENAME COLUMN gone TO run_after")
    assert "are of another version" in said
    assert "manage.py migrate" in said


def test_tables_without_permission_are_said(start: Start, ledger: Ledger) -> None:
    ledger.connection.execute("DROP ROLE IF EXISTS stranger")
    ledger.connection.execute("CREATE ROLE stranger LOGIN PASSWORD 'stranger'")
    try:
        env = {"AIOTASKS_DB_USER": "stranger", "AIOTASKS_DB_PASSWORD": "stranger"}
        said = complaint(start("-m", "aiotasks.worker", env=env))
    finally:
        ledger.connection.execute("DROP ROLE stranger")
    assert said.startswith("aiotasks: The user of DATABASES['default'] may not use the tables of aiotasks (")


@pytest.mark.parametrize(
    ("may", "role_is", "sentence"),
    [
        ("SELECT", "", "The user of DATABASES['default'] may not use the tables of aiotasks ("),
        (
            "ALL",
            "ALTER ROLE reader SET default_transaction_read_only = on",
            "DATABASES['default'] is read-only, perhaps a standby (",
        ),
    ],
    ids=["by its grants", "by its role"],
)
def test_a_database_that_can_only_be_read(
    start: Start, ledger: Ledger, may: str, role_is: str, sentence: str
) -> None:
    ledger.connection.execute(
        f"CREATE ROLE reader LOGIN; GRANT {may} ON ALL TABLES IN SCHEMA public TO reader"
    )
    try:
        if role_is:
            ledger.connection.execute(role_is)
        code = OF_LITTLE_PATIENCE
        process = start("-c", code, env={"AIOTASKS_DB_USER": "reader"})
        said = complaint(process)
    finally:
        ledger.connection.execute("DROP OWNED BY reader; DROP ROLE reader")
    assert said.startswith(f"aiotasks: {sentence}")


def test_a_database_out_of_reach_is_waited_for_and_then_said(start: Start) -> None:
    code = OF_LITTLE_PATIENCE
    process = start("-c", code, env={"AIOTASKS_DB_PORT": "1"})
    said = complaint(process)
    assert said.startswith("aiotasks: PostgreSQL at DATABASES['default'] can't be reached: ")
    first, _ = process.log.splitlines()
    assert "the worker waits for its database" in first


def test_the_sites_logging_is_left_alone(start: Start, ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "quiet.py").write_text(
        "from tests.worker.settings import *\n"
        "LOGGING = {'version': 1, 'handlers': {'null': {'class': 'logging.NullHandler'}},\n"
        "           'root': {'handlers': ['null']}}\n"
    )
    process = start(
        "-m", "aiotasks.worker", "--until-empty", "--settings", "quiet", env={"PYTHONPATH": path(tmp_path)}
    )
    assert process.wait() == 0
    assert process.log == ""


def path(folder: Path) -> str:
    return f"{folder}{os.pathsep}{ROOT}"


def test_without_uvloop(start: Start, ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['uvloop'] = None\n")
    tasks.add.enqueue(1, 2)
    tasks.fail.enqueue("SystemExit")
    tasks.fail_in_background.enqueue("KeyboardInterrupt")
    process = start("-m", "aiotasks.worker", env={"PYTHONPATH": path(tmp_path)})
    process.wait_for("at a time on asyncio")
    wait_until(lambda: ledger.statuses() == {"SUCCESSFUL": 2, "FAILED": 1})
    assert process.stop(signal.SIGINT) == 0


def test_a_password_that_is_wrong(start: Start) -> None:
    """As the server of the run trusts everybody, one that speaks only the first words of the protocol."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            with suppress(OSError):  # the test has ended
                while True:
                    connection, _ = server.accept()
                    threading.Thread(target=answer, args=[connection], daemon=True).start()

        def answer(connection: socket.socket) -> None:
            fields = b'SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed for user "me"\0\0'
            with connection, suppress(OSError):
                words = connection.recv(1000)
                if len(words) == 8:
                    connection.sendall(b"N")  # no TLS
                    words = connection.recv(1000)
                if words:
                    connection.sendall(b"E" + (len(fields) + 4).to_bytes(4) + fields)

        threading.Thread(target=refuse, daemon=True).start()
        process = start("-m", "aiotasks.worker", env={"AIOTASKS_DB_PORT": str(server.getsockname()[1])})
        said = complaint(process)
        server.shutdown(socket.SHUT_RDWR)
    assert said == (
        "aiotasks: PostgreSQL refuses the user or password of DATABASES['default']: "
        'password authentication failed for user "me".'
    )


def test_too_few_file_descriptors(start: Start, ledger: Ledger) -> None:
    """For a thread with a connection: refused before anything is claimed. With what it asks for, it runs
    tasks of both lanes."""
    runs = "from aiotasks.worker.process.cli import main; raise SystemExit(main(['--until-empty']))"

    def limited(number: int) -> Process:
        limit = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({number}, {number}))"
        return start("-c", f"{limit}; {runs}")

    for _ in range(5):
        for task, *args in ((tasks.query_sync,), (tasks.query, 0.0), (tasks.add, 1, 1)):
            task.enqueue(*args)
    refused = [limited(number) for number in (16, 24)]
    for process in refused:
        assert process.wait() == 1
        line, _ = process.log.splitlines()  # and what the run came to
    found = re.search(r"may open 24 file descriptors \(`ulimit -n`\), .* needs \d+, so (\d+) in all\.", line)
    assert found, line
    assert ledger.statuses() == {"READY": 15}
    assert ledger.workers() == 0
    assert limited(int(found[1])).wait(2 * TIMEOUT) == 0
    assert ledger.statuses() == {"SUCCESSFUL": 15}
