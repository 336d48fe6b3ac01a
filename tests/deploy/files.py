"""The files of docs/deploy/, and the workers' command lines in them."""

import argparse
import configparser
import json
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from aiotasks.worker.process import cli
from aiotasks.worker.process.supervisor import KILL_AFTER, LEAVE_AFTER
from tests.conftest import ROOT

DEPLOY = ROOT / "docs/deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))

# Seconds until SIGKILL: Docker's and Heroku's own; nothing in a file changes them.
DOCKER_STOP = 10.0
HEROKU_STOP = 30.0

COMMAND = ["-m", "aiotasks.worker"]


class WorkerCommand(NamedTuple):
    """How a file starts a worker. ``stop``: the seconds between the signal for its stop and SIGKILL."""

    words: list[str]
    stop: float

    @property
    def arguments(self) -> list[str]:
        """The words after ``-m aiotasks.worker``."""
        start = self.words.index("-m")
        assert self.words[start : start + 2] == COMMAND
        assert Path(self.words[start - 1]).name == "python"
        return self.words[start + 2 :]

    @property
    def options(self) -> argparse.Namespace:
        parser = argparse.ArgumentParser(exit_on_error=False)
        parser.add_argument("--settings")
        cli.add_arguments(parser)
        return parser.parse_args(self.arguments)

    @property
    def longest(self) -> float:
        """The seconds after which a stop of it is over, whatever hangs."""
        options = self.options
        return float(options.grace + KILL_AFTER + (LEAVE_AFTER if options.processes > 1 else 0))

    def here(self) -> list[str]:
        """Its arguments for a worker of a test: any port, and the test's settings."""
        words = list(self.arguments)
        for name, value in (("--health-port", "0"), ("--settings", "tests.worker.settings")):
            if name in words:
                words[words.index(name) + 1] = value
        return [*COMMAND, *words]


def unit() -> configparser.ConfigParser:
    """The unit of systemd. Its names may be there more than once in general, but aren't in this one."""
    return _ini("aiotasks.service", comments="#")


def program() -> configparser.SectionProxy:
    """The program of supervisord."""
    return _ini("supervisord.conf", comments=";")["program:aiotasks"]


def procfile() -> dict[str, str]:
    lines = (DEPLOY / "Procfile").read_text("utf-8").splitlines()
    return dict(line.split(": ", 1) for line in lines)


def dockerfile() -> list[tuple[str, str]]:
    """The instructions, each with what follows it."""
    lines = (DEPLOY / "Dockerfile").read_text("utf-8").splitlines()
    found = [re.fullmatch(r"([A-Z]+) (.+)", line) for line in lines if line and not line.startswith("#")]
    assert all(found), "each instruction is in one line"
    return [(match[1], match[2]) for match in found if match]


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8")))


def manifests(*names: str) -> list[dict[str, Any]]:
    """The objects of these files of kubernetes/, or of all."""
    files = [file for file in MANIFESTS if not names or file.stem in names]
    return [one for file in files for one in yaml.safe_load_all(file.read_text("utf-8"))]


def worker_commands() -> dict[str, WorkerCommand]:
    """Each file with a worker's command line."""
    (pod,) = [one["spec"]["template"]["spec"] for one in manifests("worker")]
    (container,) = pod["containers"]
    service, in_compose = unit()["Service"], compose()["services"]["worker"]
    return {
        "aiotasks.service": WorkerCommand(
            shlex.split(service["ExecStart"]), float(service["TimeoutStopSec"])
        ),
        "supervisord.conf": WorkerCommand(
            shlex.split(program()["command"]), float(program()["stopwaitsecs"])
        ),
        "Procfile": WorkerCommand(shlex.split(procfile()["worker"]), HEROKU_STOP),
        "Dockerfile": WorkerCommand(json.loads(dict(dockerfile())["CMD"]), DOCKER_STOP),
        "compose.yaml": WorkerCommand(
            in_compose["command"], float(in_compose["stop_grace_period"].removesuffix("s"))
        ),
        "kubernetes/worker.yaml": WorkerCommand(
            container["args"], float(pod["terminationGracePeriodSeconds"])
        ),
    }


def _ini(name: str, comments: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(
        interpolation=None, strict=True, comment_prefixes=comments, delimiters="="
    )
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # names have capital letters
    parser.read_string((DEPLOY / name).read_text("utf-8"))
    return parser
