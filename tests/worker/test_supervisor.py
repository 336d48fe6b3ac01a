"""`--processes`: real workers first, then the supervisor with small scripts for children."""

import asyncio
import logging
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from django.core.management import call_command

from aiotasks.metrics import Family, Sample
from aiotasks.worker.process import cli, supervisor
from aiotasks.worker.process.sd_notify import ServiceManager
from aiotasks.worker.process.supervisor import Supervisor
from tests.site import default_task_backend

from . import tasks
from .harness import Ledger, Process, Start, until, wait_until

COMMANDS = {"module": ["-m", "aiotasks.worker"], "manage": ["-m", "django", "aiotasks", "worker"]}
SHORT_LEASE = {"LEASE_TIMEOUT": 2, "POLL_INTERVAL": 1}


def workers_of(process: Process) -> set[int]:
    return {child.pid for child in psutil.Process(process.pid).children()}


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def serving(ledger: Ledger) -> set[int]:
    return {row.pid for row in ledger.rows("SELECT pid FROM aiotasks_worker")}


def supervise(start: Start, ledger: Ledger, *arguments: str, processes: int = 2, **keywords: Any) -> Process:
    """Start a supervisor and return when its workers serve."""
    process = start("-m", "aiotasks.worker", "--processes", str(processes), *arguments, **keywords)
    wait_until(lambda: process.log.count("connections: at most") >= processes)
    return process


# --- Real workers


@pytest.mark.parametrize("command", COMMANDS)
def test_each_process_is_a_worker(start: Start, ledger: Ledger, command: str) -> None:
    """A stop is one signal to each, however many processes it is sent to."""
    code = "import os, sys; os.setpgid(0, 0); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    process = start("-c", code, *COMMANDS[command], "--processes", "2", "--concurrency", "5")
    wait_until(lambda: ledger.workers() == 2)
    children = workers_of(process)
    assert len(children) == 2
    assert serving(ledger) == children
    assert all(process.log.count(f"Started a worker pid={pid}\n") == 1 for pid in children)
    assert not psutil.Process(process.pid).net_connections()
    default_task_backend.enqueue_many(tasks.work, [((1.0,), {})] * 6)
    wait_until(lambda: ledger.events("start") >= 6)
    if command == "module":  # a terminal's Ctrl-C, to its process group
        assert not {os.getpgid(pid) for pid in children} & {process.pid, os.getpgid(0)}
        os.killpg(process.pid, signal.SIGINT)
    else:  # as systemd does by default
        for pid in children:
            os.kill(pid, signal.SIGTERM)
        wait_until(lambda: process.log.count("stopping, running=") >= 2)
        process.send(signal.SIGTERM)
    assert process.wait() == 0
    assert ledger.statuses() == {"SUCCESSFUL": 6}
    assert ledger.workers() == 0
    assert not any(map(is_alive, children))
    assert "Traceback" not in process.log


def test_a_killed_worker_is_replaced_and_its_task_run_again(start: Start, ledger: Ledger) -> None:
    process = supervise(start, ledger, options=SHORT_LEASE)
    before = workers_of(process)
    result = tasks.kill_worker_once.enqueue()
    wait_until(lambda: ledger.task(result.id).status == "SUCCESSFUL")
    assert ledger.task(result.id).crashes == 1
    wait_until(lambda: serving(ledger) == workers_of(process) != before)
    (died,) = re.findall(
        r"A worker has ended; starting another pid=(\d+) signal=9 \(Killed\) pause=0.5\n",
        process.log,
    )
    assert before - workers_of(process) == {int(died)}
    assert process.stop() == 0
    assert ledger.workers() == 0


def test_a_second_signal_hurries(start: Start, ledger: Ledger) -> None:
    process = supervise(start, ledger, "--grace", "600", "--concurrency", "1", "--threads", "1")
    results = [tasks.work.enqueue(60.0), tasks.work.enqueue(60.0), tasks.work_sync.enqueue(60.0)]
    wait_until(lambda: ledger.events("start") >= 3)
    process.send(signal.SIGTERM)
    wait_until(lambda: process.log.count("stopping, running=") >= 2)
    process.send(signal.SIGTERM)
    assert process.wait() == 0
    for result in results:
        row = ledger.task(result.id)
        assert (row.status, row.worker_ids, row.crashes) == ("READY", [], 0)
    assert ledger.workers() == 0


def test_workers_leave_when_their_supervisor_is_killed(start: Start, ledger: Ledger) -> None:
    process = supervise(start, ledger)
    children = workers_of(process)
    tasks.work.enqueue(1.0)
    wait_until(lambda: ledger.events("start") >= 1)
    process.send(signal.SIGKILL)
    process.wait()
    wait_until(lambda: process.log.count("INFO aiotasks.worker: stopped\n") >= 2)
    assert ledger.statuses() == {"SUCCESSFUL": 1}
    assert ledger.workers() == 0
    assert process.log.count("The supervisor has ended; this worker stops") == 2
    wait_until(lambda: not any(map(is_alive, children)))


def test_until_empty(start: Start, ledger: Ledger) -> None:
    default_task_backend.enqueue_many(tasks.work, [((0.05,), {})] * 20)
    process = start("-m", "aiotasks.worker", "--processes", "2", "--until-empty", "--concurrency", "1")
    assert process.wait() == 0
    assert ledger.statuses() == {"SUCCESSFUL": 20}
    assert process.log.count("Started a worker") == 2
    assert "A worker has ended" not in process.log
    assert ledger.workers() == 0


MISTAKES: dict[str, tuple[list[str], dict[str, str], str]] = {
    "the supervisor's": (["--settings", "nowhere"], {}, "the settings 'nowhere' can't be loaded: "),
    "a worker's": (["--backend", "nowhere"], {}, "TASKS has no backend 'nowhere'; it has "),
    "the server's": ([], {"AIOTASKS_DB_PORT": "1"}, "PostgreSQL at DATABASES['default'] can't be reached: "),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_said_once(start: Start, ledger: Ledger, mistake: str) -> None:
    arguments, env, sentence = MISTAKES[mistake]
    code = "from aiotasks.worker.process import cli; cli.DATABASE_TIMEOUT = 0.5; raise SystemExit(cli.main())"
    process = start("-c", code, "--processes", "3", *arguments, env=env)
    assert process.wait() == 1
    assert process.log.count(f"aiotasks: {sentence}") == 1
    assert process.log.count("Started a worker") == (0 if mistake == "the supervisor's" else 1)
    assert "Traceback" not in process.log


# --- The command line


@pytest.mark.parametrize("number", ["0", "-1", "257", "1000000000", "1.5", "many", "", "9" * 5000])
def test_a_wrong_number_of_processes_is_refused(capsys: pytest.CaptureFixture[str], number: str) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(["--processes", number])
    assert exit.value.code == 2
    said = capsys.readouterr().err
    assert f"argument --processes: {number!r} isn't a whole number from 1 to 256" in said


def test_until_empty_and_reload_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main(["--until-empty", "--reload"])
    assert exit.value.code == 2
    assert "argument --reload: not allowed with argument --until-empty" in capsys.readouterr().err


def test_a_call_has_no_command_line_to_start_again(capsys: pytest.CaptureFixture[str]) -> None:
    said = "aiotasks: --processes and --reload need a command line that they can start again.\n"
    with pytest.raises(SystemExit) as exit:
        call_command("aiotasks", "worker", "--processes", "2")
    assert exit.value.code == 1
    assert capsys.readouterr().err == said
    assert cli.main(["--reload"]) == 1
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("number", ["0", "1000"])
def test_only_a_supervisor_supervises(capsys: pytest.CaptureFixture[str], number: str) -> None:
    assert cli.main(["--supervised", number]) == 1
    assert capsys.readouterr().err == "aiotasks: --supervised is for a supervisor's workers only.\n"


# --- The supervisor, with scripts

READY = "import os, signal, sys, time; os.write(int(sys.argv[-1]), b'\\n');"
WAIT = "time.sleep(60)"


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-S", "-E", "-c", f"import os, signal, sys, time\n{code}", *arguments]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """What the supervisor has logged that matches."""
    caplog.set_level(logging.INFO, "aiotasks.supervisor")
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.01)

    def said(pattern: str) -> list[str]:
        found = (re.search(pattern, message) for message in caplog.messages)
        return [match[match.lastindex or 0] for match in found if match]

    return said


@asynccontextmanager
async def running(command: Sequence[str], processes: int = 1, **keywords: Any) -> AsyncIterator[Any]:
    """A supervisor that runs; ended by SIGTERM unless it has ended by itself."""
    task = asyncio.create_task(Supervisor(command, processes=processes, **keywords).run())
    try:
        yield task
    finally:
        await asyncio.sleep(0)  # its handlers are there
        if not task.done():
            os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(task, 10)


async def test_a_crash_loop_backs_off(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE", 0.05)
    async with running(python("os.kill(os.getpid(), signal.SIGKILL)"), processes=2) as supervising:
        await until(lambda: len(said("has ended")) >= 5)
    assert supervising.result() == 0
    pauses = said(r"A worker has ended; starting another pid=\d+ signal=9 \(Killed\) pause=(.*)$")
    assert pauses[:5] == ["0.01", "0.02", "0.04", "0.05", "0.05"]


async def test_who_has_lived_begins_anew(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "STEADY", 0.0)
    async with running(python(READY + "sys.exit(3)")):
        await until(lambda: len(said("has ended")) >= 3)
    assert set(said(r"exit=3 pause=(.*)$")) == {"0.01"}


async def test_who_asks_for_another_too_soon_waits(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its threads get stuck again and again: starts cost more than they bring."""
    async with running(python(READY + "sys.exit(75)")):
        await until(lambda: len(said("to be started again")) >= 3)
    assert said(r"to be started again .* pause=(.*)$")[:3] == ["0.01", "0.02", "0.04"]


@pytest.mark.parametrize("message", [b"\0\0\0\1x", b"\0\0\0\0013", b"a line of text\n"])
async def test_what_is_no_message_of_a_worker_ends_no_supervisor(said: Any, message: bytes) -> None:
    """A task has written to a wrong file descriptor."""
    code = f"{READY} os.write(int(os.environ['AIOTASKS_REPORTS']), {message!r}); {WAIT}"
    async with running(python(code)) as supervising:
        await until(lambda: said("The channel between a worker and its supervisor has failed"))
        (pid,) = said(r"Started a worker pid=(\d+)")
        os.kill(int(pid), signal.SIGKILL)
        await until(lambda: len(said("Started a worker")) >= 2)
        assert not supervising.done()
    assert supervising.result() == 0


ANSWERS = """
import json, socket, struct
channel = socket.socket(fileno=int(os.environ["AIOTASKS_REPORTS"]))
while True:
    (length,) = struct.unpack("!I", channel.recv(4, socket.MSG_WAITALL))
    asked = json.loads(channel.recv(length, socket.MSG_WAITALL))
    body = json.dumps({"id": asked["id"], "answer": ANSWERS[asked["ask"]], "later": 1}).encode()
    channel.sendall(struct.pack("!I", len(body)) + body)
"""


HEALTH = {"process": "9", "pid": 5, "turned": 0.5, "ready": True, "reasons": [], "status": "runs"}
FAMILY = Family("aiotasks_x", "gauge", "X.", [Sample("aiotasks_x", {"task": "a"}, 1)])
LATER = {
    "health": {**HEALTH, "later": 1},
    "metrics": [["aiotasks_x", "gauge", "X.", [["aiotasks_x", {"task": "a"}, 1, "later"]], "later"]],
}
WRONG = {"health": [1], "metrics": [["aiotasks_x"]]}


@pytest.mark.parametrize(
    ("answers", "status", "scraped"),
    [(LATER, "STATUS=runs", [("0", [FAMILY])]), (WRONG, "STATUS=it starts", [])],
    ids=["later", "wrong"],
)
async def test_answers_of_another_release(
    said: Any, answers: dict[str, Any], status: str, scraped: list[Any]
) -> None:
    """After a deploy in place the supervisor is of the older one."""
    lines: list[str] = []
    manager: Any = ServiceManager("/nowhere", 0.01)
    manager.notify = lambda *notified: lines.extend(notified)
    supervisor = Supervisor(python(f"{READY}\nANSWERS = {answers!r}{ANSWERS}"), processes=1, manager=manager)
    supervising = asyncio.create_task(supervisor.run())
    await until(lambda: status in lines and "READY=1" in lines)
    assert await supervisor._scrape() == scraped
    assert not supervising.done()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(supervising, 10)


async def test_a_part_of_it_that_fails_ends_no_worker(said: Any) -> None:
    manager: Any = ServiceManager("/nowhere", None)
    manager.run = lambda processes: 1 / 0
    async with running(python(READY + WAIT), manager=manager) as supervising:
        await until(lambda: said("A part of the health endpoints has failed"))
        await until(lambda: said("Started a worker"))
        assert not supervising.done()
    assert supervising.result() == 0


async def test_who_leaves_untold_is_replaced(said: Any) -> None:
    async with running(python(READY)):
        await until(lambda: len(said("has ended.* exit=0")) >= 2)


async def test_who_cannot_start_ends_it(said: Any) -> None:
    async with running(python("sys.exit(7)"), processes=3) as supervising:
        assert await asyncio.wait_for(asyncio.shield(supervising), 10) == 7
    assert len(said("Started a worker")) == 1
    assert len(said(r"A worker could not start; stopping pid=\d+ exit=7$")) == 1


async def test_who_cannot_start_beside_others_is_tried_again(said: Any, tmp_path: Path) -> None:
    one_lives = f"""
try:
    os.mkdir({os.fspath(tmp_path / "lives")!r})
except FileExistsError:
    sys.exit(1)
os.write(int(sys.argv[-1]), b"\\n")
time.sleep(60)
"""
    async with running(python(one_lives), processes=2) as supervising:
        await until(lambda: len(said("has ended.* exit=1")) >= 3)
        assert not supervising.done()
    assert supervising.result() == 0


async def test_the_others_wait_for_the_first(said: Any, tmp_path: Path) -> None:
    go, there = tmp_path / "go", tmp_path / "there"
    code = f"os.makedirs({os.fspath(there)!r}, exist_ok=True)\n"
    code += f"while not os.path.exists({os.fspath(go)!r}): time.sleep(0.01)\n"
    async with running(python(code + READY + WAIT), processes=3):
        await until(there.exists)  # by when the others would have been started, too
        assert len(said("Started a worker")) == 1
        go.touch()
        await until(lambda: len(said("Started a worker")) >= 3)


async def test_a_worker_that_dies_at_the_stop_is_told(said: Any, tmp_path: Path) -> None:
    there = tmp_path / "there"
    code = "signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))\n"
    async with running(python(f"{code}os.mkdir({os.fspath(there)!r}); {WAIT}")) as supervising:
        await until(there.exists)
    assert supervising.result() == 128 + signal.SIGKILL


async def test_a_worker_that_outlives_its_grace_is_killed(
    said: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose code holds the GIL, say: it can't end by itself."""
    monkeypatch.setattr(supervisor, "KILL_AFTER", 0.1)
    monkeypatch.setattr(supervisor, "LEAVE_AFTER", 600.0)  # this process is to stay
    there = tmp_path / "there"
    code = f"signal.signal(signal.SIGTERM, signal.SIG_IGN); os.mkdir({os.fspath(there)!r}); {WAIT}"
    async with running(python(code), grace=0.0) as supervising:
        await until(there.exists)
    assert supervising.result() == 128 + signal.SIGKILL


@pytest.mark.parametrize("told", ["to stop", "of a change"])
async def test_a_worker_that_starts_meanwhile_is_told_too(
    said: Any, monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    changes = Changes()
    begin = asyncio.create_subprocess_exec

    async def start(*args: Any, **keywords: Any) -> Any:
        process = await begin(*args, **keywords)
        if not said("Started a worker"):
            if told == "to stop":
                os.kill(os.getpid(), signal.SIGTERM)
                await until(lambda: said("Stopping"))
            else:
                changes.event.set()
                await until(lambda: said("The code has changed"))
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    async with running(python(WAIT), change=changes):
        await until(lambda: len(said("Started a worker")) >= (1 if told == "to stop" else 2))


async def test_no_process_to_be_had(said: Any) -> None:
    async with running(["/nowhere/python"]) as supervising:
        await until(lambda: said("Could not start a process .* pause=0.02 "))
    assert supervising.result() == 0


async def test_who_served_for_a_moment_has_served(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = asyncio.create_subprocess_exec

    async def begin_slowly(*args: Any, **keywords: Any) -> Any:
        process = await begin(*args, **keywords)
        await process.wait()
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", begin_slowly)
    async with running(python(READY + "sys.exit(3)")):
        await until(lambda: said("has ended.* exit=3") or said("worker could not start"))
    assert not said("worker could not start")


async def test_nothing_is_open_afterwards(said: Any) -> None:
    before = os.listdir("/dev/fd")
    async with running(python(READY + WAIT), processes=4):
        await until(lambda: len(said("Started a worker")) >= 4)
    # The loop keeps up to two of its own once it has had children.
    await until(lambda: len(os.listdir("/dev/fd")) <= len(before) + 2)


# --- A change of the code


class Changes:
    """Stands for the look at the files."""

    def __init__(self) -> None:
        self.event = asyncio.Event()

    async def __call__(self) -> str:
        await self.event.wait()
        self.event.clear()
        return "path='one.py'"


async def test_a_change_restarts_all_and_hurries(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "RELOAD_GRACE", 0.05)
    # Deaf to SIGTERM, it leaves when there is no more grace.
    code = "signal.signal(signal.SIGTERM, signal.SIG_IGN);" + READY + "os.read(int(sys.argv[-1]), 1)"
    changes = Changes()
    task = asyncio.create_task(Supervisor(python(code), processes=2, change=changes).run())
    await until(lambda: len(said("Started a worker")) >= 2)
    changes.event.set()
    await until(lambda: len(said("Started a worker")) >= 4)
    assert said("The code has changed; restarting workers processes=2 path='one.py'")
    assert not said("has ended")
    os.kill(os.getpid(), signal.SIGTERM)
    await until(lambda: said("Stopping processes=2"))
    assert not task.done()
    os.kill(os.getpid(), signal.SIGTERM)
    assert await task == 0


async def test_code_that_cannot_start_waits_for_the_next_change(said: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    changes = Changes()
    code = f"if os.path.exists({os.fspath(broken)!r}): sys.exit(1)\n"
    async with running(python(code + READY + WAIT), processes=2, change=changes) as supervising:
        await until(lambda: len(said("Started a worker")) >= 2)
        broken.touch()
        changes.event.set()
        await until(lambda: said("waiting for the next change of the code"))
        began = time.monotonic()
        await until(lambda: time.monotonic() - began > 0.1)
        assert not supervising.done()
        assert len(said("Started a worker")) == 3
        broken.unlink()
        changes.event.set()
        await until(lambda: len(said("Started a worker")) >= 5)
    assert len(said("worker could not start")) == 1
    assert supervising.result() == 0


async def test_code_that_never_started_ends_it(said: Any) -> None:
    """What was typed may be wrong, which no change of the code mends."""
    async with running(python("sys.exit(1)"), change=Changes()) as supervising:
        assert await asyncio.wait_for(asyncio.shield(supervising), 10) == 1
