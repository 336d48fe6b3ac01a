"""Outage: two lines in the log for an outage, however many tries it takes."""

import logging

import pytest
from django.db import utils

from aiotasks.db.outage import Outage

logger = logging.getLogger("tests.outage")


def test_its_begin_and_its_end_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger.name)
    outage = Outage(logger, "claims", "claims wait for the database", longest=0.2)
    outage.ended()
    pauses = [outage.failed(utils.OperationalError(f"gone {n}")) for n in range(9)]
    outage.ended()
    outage.ended()
    began, ended = caplog.records
    assert began.getMessage() == "Outage began: claims wait for the database part='claims' error='gone 0'"
    assert began.levelno == logging.WARNING
    assert ended.getMessage() == "Outage ended part='claims' seconds=0.0 failures=9"
    assert ended.levelno == logging.INFO
    assert 0.025 <= pauses[0] <= 0.05
    assert 0.1 <= pauses[-1] <= 0.2


def test_the_next_outage_is_another(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger.name)
    outage = Outage(logger, "claims", "claims wait for the database")
    for _ in range(2):
        assert outage.failed(utils.OperationalError("gone")) <= 0.05
        outage.ended()
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.INFO] * 2


def test_what_waiting_may_not_help_against_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage(logger, "claims", "claims wait for the database")
    outage.failed(utils.ProgrammingError("no such column"), "Run migrate.")
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert caplog.messages == [
        "Outage began: claims wait for the database part='claims' error='Run migrate.'"
    ]


def test_an_observer_gets_both() -> None:
    seen: list[tuple[str, str, type]] = []

    class Seen:
        def outage_began(self, part: str, error: Exception) -> None:
            seen.append(("began", part, type(error)))

        def outage_ended(self, part: str, seconds: float) -> None:
            seen.append(("ended", part, type(seconds)))

    outage = Outage(logger, "claims", "claims wait for the database", observer=Seen())
    for _ in range(3):
        outage.failed(utils.OperationalError("gone"))
    outage.ended()
    outage.ended()
    assert seen == [("began", "claims", utils.OperationalError), ("ended", "claims", float)]
