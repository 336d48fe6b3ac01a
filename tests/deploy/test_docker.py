"""docs/deploy/Dockerfile and compose.yaml: no daemon is needed, their steps run as they are."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ..conftest import ROOT
from ..worker.harness import Ledger, Process, Start, wait_until
from ..worker.test_health import address_of, status
from .files import COMMAND, DEPLOY, compose, dockerfile, worker_commands


def test_the_dockerfile() -> None:
    instructions = dockerfile()
    stages = [
        name for word, rest in instructions if word == "FROM" for name in re.findall(r" AS (\w+)$", rest)
    ]
    sources = [
        name for word, rest in instructions if word == "COPY" for name in re.findall(r"--from=(\w+)", rest)
    ]
    assert set(sources) == set(stages)
    last = dict(instructions[[word for word, _ in instructions].index("COPY", 5) :])
    user, _, group = last["USER"].partition(":")
    # By numbers: runAsNonRoot can't know what a name stands for.
    assert int(user) > 0
    assert int(group) > 0
    assert f"--uid {user} " in dict(instructions)["RUN"]
    assert last["EXPOSE"] == str(worker_commands()["Dockerfile"].options.health_port.port)
    assert json.loads(last["ENTRYPOINT"]) == ["tini", "--"]


def test_the_compose_file() -> None:
    services = compose()["services"]
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in services
            assert ("healthcheck" in services[other]) == (how["condition"] == "service_healthy"), name
        if name != "db":
            assert service["read_only"] is True
            assert service["cap_drop"] == ["ALL"]


@pytest.mark.skipif(
    subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode != 0
    if shutil.which("docker")
    else True,
    reason="docker compose isn't installed",
)
def test_compose_reads_its_file() -> None:
    subprocess.run(["docker", "compose", "-f", DEPLOY / "compose.yaml", "config", "-q"], check=True)


def test_the_health_check_of_compose(start: Start, ledger: Ledger) -> None:
    worker = start(*worker_commands()["compose.yaml"].here())
    wait_until(lambda: status(worker, "/readyz") == 200)
    kind, program, *arguments = compose()["services"]["worker"]["healthcheck"]["test"]
    assert (kind, program) == ("CMD", "python")
    here = [word.replace("127.0.0.1:9100", address_of(worker)) for word in arguments]
    assert here != arguments
    assert subprocess.run([sys.executable, *here], check=False).returncode == 0
    assert worker.stop() == 0
    ended = subprocess.run([sys.executable, *here], check=False, capture_output=True)
    assert ended.returncode != 0


def test_it_works_as_process_1_on_a_read_only_file_system(start: Start, ledger: Ledger) -> None:
    unshare = shutil.which("unshare")
    inside = "mount -o remount,ro,bind / && [ ! -w / ]"
    options = ["--mount", "--pid", "--fork", "--mount-proc"]
    if os.geteuid() or not unshare:
        pytest.skip("needs root and unshare")
    if subprocess.run([unshare, *options, "sh", "-c", inside], check=False, capture_output=True).returncode:
        pytest.skip("mounts aren't allowed here")
    words = [sys.executable, *worker_commands()["Dockerfile"].here()]
    code = "import os, sys; os.execvp('unshare', sys.argv[1:])"
    outer = start(
        "-c", code, "unshare", *options, "--kill-child", "sh", "-c", f'{inside} && exec "$@"', "-", *words
    )
    # Its own network is the machine's, so that it reaches the database, and the test reaches it.
    wait_until(lambda: status(outer, "/readyz") == 200)
    assert "This is process 1 of its container" in outer.log
    (worker,) = children(outer)
    os.kill(worker, signal.SIGTERM)
    assert outer.wait() == 0


def children(process: Process) -> list[int]:
    return [child.pid for child in psutil.Process(process.pid).children()]


@pytest.mark.battery
def test_the_steps_of_the_dockerfile(start: Start, ledger: Ledger, tmp_path: Path) -> None:
    """Everything below /srv is below a temporary directory; what needs root of an image is left out."""
    srv, context = tmp_path / "srv", tmp_path / "context"
    (context / "shop").mkdir(parents=True)
    (context / "shop/__init__.py").touch()
    (context / "shop/settings.py").write_text("from tests.worker.settings import *\n")
    (context / "requirements.txt").write_text(f"{ROOT}[prometheus]\npsycopg[binary]\n")
    srv.mkdir()

    def here(text: str) -> str:
        return text.replace("/srv", os.fspath(srv))

    env = {**os.environ}
    done = []
    for word, rest in dockerfile():
        if word == "RUN" and not rest.startswith(("apt-get ", "useradd ")):
            step = re.sub(r"^python ", f"{sys.executable} ", here(rest))
            subprocess.run(["sh", "-ec", step], check=True, cwd=tmp_path, env=env)
            done.append(step)
        elif word == "COPY" and not rest.startswith("--from="):
            source, target = rest.split()
            if source == ".":
                shutil.copytree(context, here(target))
            else:
                shutil.copy(context / source, here(target))
    assert len(done) == 3
    assert list((srv / "shop/shop/__pycache__").iterdir())
    env.update(dict(pair.split("=", 1) for pair in here(dict(dockerfile())["ENV"]).split()))
    code = f"import os, sys; os.chdir({os.fspath(srv / 'shop')!r}); os.execv(sys.argv[1], sys.argv[1:])"
    arguments = [*COMMAND, "--health-port", "0", "--grace", "5"]
    worker = start(
        *("-c", code, os.fspath(srv / "venv/bin/python"), *arguments),
        env={"DJANGO_SETTINGS_MODULE": env["DJANGO_SETTINGS_MODULE"], "PYTHONDONTWRITEBYTECODE": "1"},
    )
    wait_until(lambda: status(worker, "/readyz") == 200)
    assert worker.stop() == 0
