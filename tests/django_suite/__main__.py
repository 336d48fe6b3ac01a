"""See the package."""

import os
import sys
import unittest
from collections.abc import Iterator
from typing import Any

import django
import psycopg
from django.conf import settings

from aiotasks.demo.postgres import PostgresServer

from .not_applicable import NOT_APPLICABLE


def main(directory: str) -> int:
    """Run them; the exit code."""
    sys.path.insert(0, directory)
    with PostgresServer(settings={"fsync": "off"}) as server:
        configure(server)
        result = run(server)
    return report(result)


def configure(server: PostgresServer) -> None:
    settings.configure(
        SECRET_KEY="for tests only",
        USE_TZ=True,
        INSTALLED_APPS=["aiotasks"],
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.postgresql",
                "HOST": server.host,
                "PORT": str(server.port),
                "USER": server.user,
                "NAME": "postgres",
                "TEST": {"NAME": "django_suite"},
            }
        },
    )
    django.setup()
    from django.tasks.backends import dummy, immediate
    from django.test import SimpleTestCase

    from .backends import RunningBackend, StoringBackend

    dummy.DummyBackend = StoringBackend  # type: ignore[assignment,misc]
    immediate.ImmediateBackend = RunningBackend  # type: ignore[assignment,misc]
    SimpleTestCase.databases = {"default"}  # theirs need none


class Result(unittest.TextTestResult):
    """Notes what became of each test, and begins each with empty tables."""

    observer: psycopg.Connection[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.outcomes: dict[str, str] = {}

    def startTest(self, test: unittest.TestCase) -> None:
        self.observer.execute("TRUNCATE aiotasks_task, aiotasks_worker")
        self.outcomes[test.id()] = "passed"
        super().startTest(test)

    def _is_news(self, test: Any) -> bool:
        """Note a failure; whether it is one to be shown."""
        self.outcomes[test.id()] = "failed"
        return test.id() not in NOT_APPLICABLE

    def addError(self, test: Any, err: Any) -> None:
        if self._is_news(test):
            super().addError(test, err)

    def addFailure(self, test: Any, err: Any) -> None:
        if self._is_news(test):
            super().addFailure(test, err)

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        if err is None or self._is_news(test):
            super().addSubTest(test, subtest, err)


def flat(suite: Any) -> Iterator[unittest.TestCase]:
    for test in suite:
        if isinstance(test, unittest.TestCase):
            yield test
        else:
            yield from flat(test)


def run(server: PostgresServer) -> Result:
    from django.test.utils import (
        setup_databases,
        setup_test_environment,
        teardown_databases,
        teardown_test_environment,
    )

    setup_test_environment()
    old_names = setup_databases(verbosity=0, interactive=False)
    with psycopg.connect(server.dsn("django_suite"), autocommit=True) as observer:
        Result.observer = observer
        suite = unittest.defaultTestLoader.discover(
            os.path.join(sys.path[0], "tasks"), top_level_dir=sys.path[0]
        )
        for test in flat(suite):
            if getattr(test, "available_apps", None) is not None:
                type(test).available_apps = ["aiotasks"]  # type: ignore[attr-defined]  # the class says []
        runner = unittest.TextTestRunner(resultclass=Result, stream=sys.stdout, verbosity=0)
        result = runner.run(suite)
        assert isinstance(result, Result)
    teardown_databases(old_names, verbosity=0)
    teardown_test_environment()
    return result


def report(result: Result) -> int:
    """Print how many passed, don't apply and failed; 1 where that isn't as listed."""
    outcomes = result.outcomes
    bad = [test for test, one in outcomes.items() if one == "failed" and test not in NOT_APPLICABLE]
    needless = [test for test in NOT_APPLICABLE if outcomes.get(test) == "passed"]
    listed = sum(test in NOT_APPLICABLE for test in outcomes)
    lines = [
        f"Django {django.__version__}: {len(outcomes) - listed - len(bad)} passed, "
        f"{listed} not applicable, {len(bad)} failed",
        *(f"failed: {test}" for test in bad),
        *(f"listed as not applicable, but passed: {test}" for test in needless),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if bad or needless or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main(os.path.abspath(sys.argv[1])))
