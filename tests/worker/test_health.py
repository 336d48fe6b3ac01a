"""``--health-port``: what probes see of a worker, and of a supervisor's, in outages and blocked loops."""

import asyncio
import json
import re
import signal
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
from django.db import connection

from aiotasks.worker.process import cli
from aiotasks.worker.process.reports import Channel
from tests.proxy import Proxy

from . import tasks
from .harness import Ledger, Process, Start, until, wait_until

LIVE_WITHIN = """
from aiotasks.worker.process import cli, probes
probes.LIVE_WITHIN = {}
raise SystemExit(cli.main())
"""

# The heartbeat notices an outage within half a second, and its end as soon.
QUICK = {"LEASE_TIMEOUT": 3, "POLL_INTERVAL": 1}


def address_of(process: Process) -> str:
    process.wait_for("Health endpoints listen address=")
    found = re.search(r"Health endpoints listen address=(\S+) ", process.log)
    assert found is not None
    return found[1]


def ask(process: Process, path: str) -> tuple[int, str]:
    """Return the status and the body; the connection must come, and the answer within the time-out."""
    try:
        with urllib.request.urlopen(f"http://{address_of(process)}{path}", timeout=20) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def status(process: Process, path: str) -> int:
    return ask(process, path)[0]


def processes(process: Process) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(ask(process, "/readyz?json")[1])["processes"]
    return found


@pytest.fixture
def proxied(worker_env: dict[str, str]) -> Any:
    params = connection.settings_dict
    with Proxy(params["HOST"], int(params["PORT"])) as proxy:
        yield proxy


@pytest.mark.parametrize("number", [1, 2])
def test_an_outage_of_the_database_makes_it_unready_and_no_more(
    start: Start, ledger: Ledger, proxied: Proxy, number: int
) -> None:
    """A restart of each pod wouldn't bring the database back."""
    worker = start(
        *("-m", "aiotasks.worker", "--health-port", "0", "--processes", str(number)),
        options=QUICK,
        env={"AIOTASKS_DB_PORT": str(proxied.port)},
    )
    wait_until(lambda: status(worker, "/readyz") == 200)
    assert status(worker, "/livez") == 200
    proxied.mode = "refuse"
    wait_until(lambda: status(worker, "/readyz") == 503)
    assert "the last renewal of its lease has failed" in ask(worker, "/readyz")[1]
    assert status(worker, "/livez") == 200
    proxied.mode = "pass"
    wait_until(lambda: status(worker, "/readyz") == 200)
    assert worker.stop() == 0


def test_before_the_database_is_reached_it_is_live(start: Start, ledger: Ledger) -> None:
    worker = start("-m", "aiotasks.worker", "--health-port", "0", env={"AIOTASKS_DB_PORT": "1"})
    assert status(worker, "/livez") == 200
    code, body = ask(worker, "/readyz")
    assert code == 503
    assert "the database has not been reached" in body
    worker.stop()


def test_a_blocked_loop_is_live_until_a_minute_is_over(start: Start, ledger: Ledger, tmp_path: Path) -> None:
    """The minute is shortened: the loop is blocked for as long as the test wants."""
    go = tmp_path / "go"
    code = LIVE_WITHIN.format(2.0)
    worker = start("-c", code, "--health-port", "0")
    wait_until(lambda: status(worker, "/readyz") == 200)
    result = tasks.block_until_file.enqueue(str(go))
    wait_until(lambda: ledger.events("start") == 1)
    assert status(worker, "/livez") == 200
    wait_until(lambda: status(worker, "/livez") == 503)
    assert "not live" in ask(worker, "/livez")[1]
    go.touch()
    wait_until(lambda: status(worker, "/livez") == 200)
    wait_until(lambda: ledger.task(result.id).status == "SUCCESSFUL")
    assert worker.stop() == 0


def test_a_stopped_process_does_not_answer(start: Start, ledger: Ledger) -> None:
    worker = start("-m", "aiotasks.worker", "--health-port", "0")
    wait_until(lambda: status(worker, "/readyz") == 200)
    host, port = address_of(worker).rsplit(":", 1)
    worker.send(signal.SIGSTOP)
    wait_until(lambda: psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED)
    with socket.create_connection((host, int(port)), timeout=1) as client:
        client.sendall(b"GET /livez HTTP/1.1\r\n\r\n")
        with pytest.raises(TimeoutError):
            client.recv(1)
        worker.send(signal.SIGCONT)
        client.settimeout(20)
        assert client.recv(12) == b"HTTP/1.1 200"
    assert worker.stop() == 0


def test_one_that_stops_is_not_ready(start: Start, ledger: Ledger, tmp_path: Path) -> None:
    go = tmp_path / "go"
    worker = start("-m", "aiotasks.worker", "--health-port", "0", "--processes", "2")
    tasks.wait_for_file.enqueue(str(go))
    wait_until(lambda: status(worker, "/readyz") == 200)
    wait_until(lambda: ledger.statuses() == {"RUNNING": 1})
    worker.send(signal.SIGTERM)
    wait_until(lambda: status(worker, "/readyz") == 503)
    assert status(worker, "/livez") == 200
    go.touch()
    assert worker.wait() == 0


def test_the_supervisor_answers_for_its_processes(start: Start, ledger: Ledger) -> None:
    """One that is stopped, or killed and started again, takes the others' readiness not away."""
    worker = start("-m", "aiotasks.worker", "--health-port", "0", "--processes", "2", options=QUICK)
    wait_until(lambda: [one["ready"] for one in processes(worker)] == [True, True])
    first, second = processes(worker)
    assert [first["process"], second["process"]] == ["0", "1"]
    psutil.Process(first["pid"]).suspend()
    assert status(worker, "/readyz") == 200
    assert status(worker, "/livez") == 200
    assert processes(worker)[0]["status"] == "it does not answer"
    psutil.Process(first["pid"]).kill()
    wait_until(lambda: [one["ready"] for one in processes(worker)] == [True, True])
    again = processes(worker)
    assert again[0]["pid"] != first["pid"]
    assert again[1]["pid"] == second["pid"]
    assert worker.stop() == 0


def test_a_supervisor_is_not_live_once_no_process_is(start: Start, ledger: Ledger) -> None:
    code = LIVE_WITHIN.format(1)
    worker = start("-c", code, "--health-port", "0", "--processes", "2")
    wait_until(lambda: [one["ready"] for one in processes(worker)] == [True, True])
    for one in processes(worker):
        psutil.Process(one["pid"]).suspend()
    wait_until(lambda: status(worker, "/livez") == 503)
    for one in processes(worker):
        psutil.Process(one["pid"]).resume()
    wait_until(lambda: status(worker, "/livez") == 200)
    assert worker.stop() == 0


async def test_a_question_without_an_answer_costs_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async def broken() -> None:
        raise ZeroDivisionError

    async def good() -> int:
        return 1

    one, other = socket.socketpair()
    worker, supervisor = Channel(one, answers={"broken": broken, "good": good}), Channel(other)
    running = [asyncio.create_task(channel.run()) for channel in (worker, supervisor)]
    await until(lambda: supervisor._writer)
    assert [await supervisor.ask(what) for what in ("broken", "good")] == [None, 1]
    assert "A worker cannot answer its supervisor" in caplog.text
    other.shutdown(socket.SHUT_RDWR)
    await asyncio.gather(*running)


@pytest.mark.parametrize("number", ["1", "2"])
def test_a_taken_port_is_one_sentence(start: Start, ledger: Ledger, number: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        worker = start("-m", "aiotasks.worker", "--health-port", str(port), "--processes", number)
        assert worker.wait() == 1
    assert (
        f"aiotasks: --health-port 127.0.0.1:{port}: can't listen there: Address already in use." in worker.log
    )
    assert "Traceback" not in worker.log


def test_a_child_that_a_task_leaves_behind_does_not_keep_the_port(start: Start, ledger: Ledger) -> None:
    worker = start("-m", "aiotasks.worker", "--health-port", "0")
    result = tasks.fork_in_thread.enqueue("stays")
    wait_until(lambda: ledger.task(result.id).status == "SUCCESSFUL")
    child = psutil.Process(ledger.task(result.id).return_value)
    try:
        _, port = address_of(worker).rsplit(":", 1)
        assert worker.stop() == 0
        assert child.is_running()
        socket.create_server(("127.0.0.1", int(port))).close()
    finally:
        child.kill()


@pytest.mark.parametrize("text", ["", "port", "70000", "localhost", "-1", "1.5", "127.0.0.1:", "[::1]"])
def test_a_wrong_address_is_a_mistake_of_usage(capsys: pytest.CaptureFixture[str], text: str) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main([f"--health-port={text}"])
    assert exit.value.code == 2
    said = f"argument --health-port: {text!r} isn't [HOST:]PORT with a port from 0 to 65535"
    assert said in capsys.readouterr().err
