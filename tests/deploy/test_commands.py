"""The workers' command lines in docs/deploy/: they are right, and their stop is over before SIGKILL comes."""

import re
import signal

import pytest

from aiotasks.conf import Options

from ..worker.harness import Ledger, Start, wait_until
from ..worker.test_health import status
from .files import DEPLOY, WorkerCommand, compose, manifests, worker_commands

COMMANDS = worker_commands()


def test_every_file_with_a_worker_is_looked_at() -> None:
    found = {
        str(path.relative_to(DEPLOY))
        for path in DEPLOY.rglob("*")
        if path.is_file() and path.suffix != ".md" and "aiotasks.worker" in path.read_text("utf-8")
    }
    assert found == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_stop_is_over_before_the_kill(command: WorkerCommand) -> None:
    assert command.longest < command.stop


@pytest.mark.parametrize("name", ["Procfile", "supervisord.conf"])
def test_a_worker_starts_by_it_and_stops(start: Start, ledger: Ledger, name: str) -> None:
    worker = start(*COMMANDS[name].here())
    if COMMANDS[name].options.health_port is None:
        worker.wait_for("connections: at most")
    else:
        wait_until(lambda: status(worker, "/readyz") == 200)
        assert status(worker, "/livez") == 200
    assert worker.stop(signal.SIGTERM) == 0


def test_ports_are_reached_from_outside_of_containers_alone() -> None:
    for name, command in COMMANDS.items():
        if (address := command.options.health_port) is not None:
            assert address.port == 9100
            inside = name == "Dockerfile" or name.startswith(("compose", "kubernetes"))
            assert address.host == ("0.0.0.0" if inside else "127.0.0.1")


def test_the_table_of_stops_on_the_page() -> None:
    page = (DEPLOY / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| \[`(.+?)`\].*\| `--grace (\d+)` \| (\d+) s \| (\d+) s", page, re.MULTILINE)
    assert {name: (float(grace), float(longest), float(stop)) for name, grace, longest, stop in rows} == {
        name: (command.options.grace, command.longest, command.stop) for name, command in COMMANDS.items()
    }


def test_the_sum_of_connections_on_the_page() -> None:
    page = (DEPLOY / "README.md").read_text("utf-8")
    options = COMMANDS["kubernetes/worker.yaml"].options
    (hpa,) = manifests("hpa")
    (deployment,) = manifests("worker")
    pods = hpa["spec"]["maxReplicas"] + deployment["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
    each = Options().most_connections(options.concurrency, options.threads) * options.processes
    small = Options(pool_max_size=4, async_db_threads=2)
    less = small.most_connections(options.concurrency, options.threads) * options.processes
    assert f"{pods} × {each} = {pods * each}" in page
    assert f"{pods} × {less} = {pods * less}" in page


def test_each_option_of_the_files_is_explained() -> None:
    """Names in files that have a table of their own."""
    page = (DEPLOY / "README.md").read_text("utf-8")
    names = re.findall(r"^(\w+)=", (DEPLOY / "aiotasks.service").read_text("utf-8"), re.MULTILINE)
    names += re.findall(r"^(\w+)=", (DEPLOY / "supervisord.conf").read_text("utf-8"), re.MULTILINE)
    names += [*compose()["x-site"], *compose()["services"]["worker"]]
    missing = [name for name in names if not re.search(rf"`{name}\b", page)]
    assert missing == []
