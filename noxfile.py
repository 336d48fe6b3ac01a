"""The project's chores: `nox -l` lists them, `nox -s NAME -- ARGUMENTS` runs one (for pytest, mostly)."""

import os
import tarfile
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv"
nox.options.sessions = ["tests", "lint", "types"]
nox.options.reuse_existing_virtualenvs = True
# The matrix covers what the machine has, in CI too.
nox.options.error_on_missing_interpreters = False

PYTHONS = Path(__file__).with_name(".python-version").read_text().split()
DJANGOS = ["6.0", "6.1"]
POSTGRESES = ["15", "18"]

# Processes of pytest-xdist, each with a server of its own: tests wait for other processes most of the time.
PARALLEL = "--numprocesses=3"


@nox.session(python=PYTHONS[0])
def tests(session: nox.Session) -> None:
    """Run the tests with one combination of versions: the pinned ones."""
    install(session)
    session.run("pytest", PARALLEL, *session.posargs)


@nox.session(python=PYTHONS)
@nox.parametrize("postgres", POSTGRESES)
@nox.parametrize("django", DJANGOS)
def matrix(session: nox.Session, django: str, postgres: str) -> None:
    """Run the tests with every combination of versions that the machine has."""
    env = {}
    if postgres != "18":  # that one is in the wheel
        bin_dir = Path(f"/usr/lib/postgresql/{postgres}/bin")
        if not (bin_dir / "initdb").exists():
            session.skip(f"PostgreSQL {postgres} isn't installed ({bin_dir})")
        env["AIOTASKS_TEST_PG_BIN"] = os.fspath(bin_dir)
    install(session)
    session.install(f"Django~={django}.0")
    session.run("pytest", PARALLEL, *session.posargs, env=env)


@nox.session(python=PYTHONS[0])
def faults(session: nox.Session) -> None:
    """Run the battery of faults and the tests' long variants; `-- --quick` the battery alone, small."""
    install(session)
    session.run("python", "-m", "tests.faults.battery", *session.posargs)
    if not session.posargs:
        session.run("pytest", "-m", "battery", success_codes=[0, 5])  # 5: there are none


@nox.session(python=PYTHONS[0])
def schedules(session: nox.Session) -> None:
    """Tick through a year, and measure ticks; `-- --days 60` a part of it, `-- --figures` only measures."""
    install(session)
    session.run("python", "-m", "tests.faults.year", *session.posargs)


@nox.session(python=PYTHONS[0])
def clients(session: nox.Session) -> None:
    """Run packages of others that use Django's Tasks, or observe them, in a small site with real workers."""
    session.install("-r", "requirements/clients.txt", "-e", ".")
    session.run(
        "pytest",
        "tests/clients",
        "--ds=tests.clients.settings",
        "-Wdefault",  # theirs to mend
        *session.posargs,
    )


@nox.session(name="django", python=PYTHONS[0])
@nox.parametrize("django", DJANGOS)
def django_suite(session: nox.Session, django: str) -> None:
    """Run Django's own tests of its Tasks against the backend; they come with Django's sdist."""
    install(session)
    wanted = f"Django~={django}.0"
    session.install(wanted, "pip")
    with tempfile.TemporaryDirectory() as directory:
        download = ("pip", "download", "--quiet", "--no-deps", "--no-binary=django", f"--dest={directory}")
        session.run("python", "-m", *download, wanted)
        (sdist,) = Path(directory).glob("*.tar.gz")
        with tarfile.open(sdist) as archive:
            archive.extractall(directory, filter="data")
        (tests,) = Path(directory).glob("*/tests")
        session.run("python", "-m", "tests.django_suite", os.fspath(tests))


@nox.session(python=PYTHONS[0])
def lint(session: nox.Session) -> None:
    """Check style, formatting and the direction of the imports."""
    session.install("-r", "requirements/lint.txt")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports")


@nox.session(python=PYTHONS[0])
def types(session: nox.Session) -> None:
    """Check the types."""
    session.install("-r", "requirements/types.txt")
    session.run("mypy")


@nox.session(python=PYTHONS[0])
def demo(session: nox.Session) -> None:
    """Run the demo with the pinned versions."""
    install(session)
    session.run("python", "-m", "aiotasks.demo", *session.posargs)


@nox.session(python=PYTHONS[0])
def bench(session: nox.Session) -> None:
    """Measure; `-- drain io-200` some of the workloads, `-- --quick` only whether they run."""
    session.install("-r", "requirements/bench.txt", "-e", ".")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session(python=PYTHONS[0])
def sustained(session: nox.Session) -> None:
    """Enqueue and run 3,000 tasks/s for 20 minutes; `-- --rate 0 --minutes 5` as many as a worker runs."""
    session.install("-r", "requirements/bench.txt", "-e", ".")
    session.run("python", "-m", "benchmarks.sustained", *session.posargs)


@nox.session(python=PYTHONS[0])
def fleet(session: nox.Session) -> None:
    """Measure many workers on one database; `-- trickle --workers 1,50` some of it."""
    session.install("-r", "requirements/bench.txt", "-e", ".")
    session.run("python", "-m", "benchmarks.fleet", *session.posargs)


@nox.session(python=PYTHONS[0])
def proofs(session: nox.Session) -> None:
    """Hammer on limits by key for ten minutes, with the figures; `-- -k rate` a part of it."""
    install(session)
    session.run("pytest", "-m", "battery", "-s", "tests/store", *session.posargs)


@nox.session(python=PYTHONS[0])
def limits(session: nox.Session) -> None:
    """Measure claims of tasks with limits, among up to a million that wait; `-- drains` a part of it."""
    session.install("-r", "requirements/bench.txt", "-e", ".")
    session.run("python", "-m", "benchmarks.limits", *session.posargs)


@nox.session(python=PYTHONS[0])
def streams(session: nox.Session) -> None:
    """Measure Server-Sent Events: the age of updates, what they cost a worker, and a server's stop."""
    session.install("-r", "requirements/bench.txt", "-e", ".")
    session.run("python", "-m", "benchmarks.streams", *session.posargs)


@nox.session(venv_backend="none")
def pin(session: nox.Session) -> None:
    """Compile requirements/*.txt anew from pyproject.toml; `-- --upgrade` takes the newest versions."""
    uv = os.environ.get("UV", "uv")  # `uv run` and `uv tool run` set it
    package = ["pyproject.toml", "--all-extras"]
    dev = ["--constraints=requirements/dev.txt"]  # so that all of them agree
    groups = [("dev", *package), ("lint", *dev), ("types", *package, *dev), ("bench", *package, *dev)]
    groups += [("clients", "--group=dev", *package, *dev)]
    for name, *arguments in groups:
        session.run(
            *(uv, "pip", "compile", "--quiet", "--no-header", "--universal", "--python-version=3.12"),
            *(f"--group={name}", f"--output-file=requirements/{name}.txt"),
            *(*arguments, *session.posargs),
            external=True,
        )


def install(session: nox.Session) -> None:
    session.install("-r", "requirements/dev.txt", "-e", ".")
