"""The forms of the worker's own log: text for people, JSON for collectors."""

import argparse
import json
import logging
from collections.abc import Iterator
from datetime import datetime

import pytest

from aiotasks import logs
from aiotasks.logs import last_resort
from aiotasks.logs.formats import JsonFormatter, TextFormatter, printable

logger = logging.getLogger("aiotasks.worker")


def made(message: str, *args: object, level: int = logging.INFO, **fields: object) -> logging.LogRecord:
    record = logging.LogRecord("aiotasks.tasks", level, __file__, 1, message, args, None)
    vars(record).update(fields)
    return record


def test_json_has_the_message_and_the_fields() -> None:
    text = JsonFormatter().format(made("failed path=%r", "shop.tasks.pay", attempt=2, seconds=0.25))
    line = json.loads(text)
    assert "\n" not in text
    assert list(line) == ["time", "level", "logger", "message", "attempt", "seconds"]
    assert line["time"].endswith("Z")
    assert datetime.fromisoformat(line["time"]).tzinfo is not None
    assert (line["level"], line["logger"]) == ("INFO", "aiotasks.tasks")
    assert line["message"] == "failed path='shop.tasks.pay'"
    assert (line["attempt"], line["seconds"]) == (2, 0.25)


def test_what_follows_the_first_line_is_a_field_of_its_own() -> None:
    line = json.loads(JsonFormatter().format(made("The loop is blocked\n%s", "  a stack\n  of two")))
    assert line["message"] == "The loop is blocked"
    assert line["details"] == "  a stack\n  of two"


def test_the_traceback_is_there_once() -> None:
    try:
        raise ValueError("no")
    except ValueError as error:
        record = made("The worker failed")
        record.exc_info = (ValueError, error, error.__traceback__)
    line = json.loads(JsonFormatter().format(record))
    assert line["traceback"].endswith("ValueError: no")
    text = JsonFormatter().format(made("failed\n  Traceback", traceback="Traceback"))
    assert text.count("Traceback") == 1


def test_no_field_breaks_the_line_or_hides_a_part() -> None:
    line = json.loads(JsonFormatter().format(made("m", level=40, time="a field", tenant={1: object()})))
    assert line["time"] != "a field"
    assert line["level"] == "ERROR"
    assert line["tenant"]["1"].startswith("<object object")


def test_text_is_as_it_always_was() -> None:
    text = TextFormatter().format(made("stopped", attempt=2))
    assert text.endswith(" INFO aiotasks.tasks: stopped")


def test_control_characters_are_escaped() -> None:
    assert printable("a\nb\x1b[31m\u2028") == "a\\nb\\x1b[31m\\u2028"
    assert printable("a\n\tb\x1b", lines=True) == "a\n\tb\\x1b"


@pytest.fixture
def options() -> Iterator[argparse.ArgumentParser]:
    parser = argparse.ArgumentParser()
    logs.add_log_options(parser)
    yield parser
    logs.apply_log_options(parser.parse_args([]))


@pytest.fixture
def threaded() -> Iterator[None]:
    logs.start()
    yield
    logs.stop()


def test_options_are_for_the_workers_own_handler(
    options: argparse.ArgumentParser,
    threaded: None,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's
    logs.apply_log_options(options.parse_args(["--log-format", "json", "--log-level", "WARNING"]))
    logger.info("left out")
    logger.warning("shown")
    assert logs.flush(10)
    logs.apply_log_options(options.parse_args(["--log-level", "debug"]))
    logger.debug("details")
    assert logs.flush(10)
    first, second = capfd.readouterr().err.splitlines()
    assert json.loads(first)["message"] == "shown"
    assert second.endswith(" DEBUG aiotasks.worker: details")


def test_a_level_above_info_makes_no_records(
    options: argparse.ArgumentParser, threaded: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "level", logging.WARNING)
    assert logger.isEnabledFor(logging.INFO)
    logs.apply_log_options(options.parse_args(["--log-level", "error"]))
    assert not logger.isEnabledFor(logging.INFO)
    assert logger.isEnabledFor(logging.ERROR)


def test_options_that_do_nothing_are_remarked_on(
    options: argparse.ArgumentParser, caplog: pytest.LogCaptureFixture
) -> None:
    """pytest's handlers show all records here, as a site's do."""
    logs.apply_log_options(options.parse_args([]))
    assert caplog.text == ""
    given = options.parse_args(["--log-format", "json"])
    logs.apply_log_options(given, warn=False)
    assert caplog.text == ""
    logs.apply_log_options(given)
    assert "Options for the log do nothing" in caplog.text
    assert "options=--log-format json\n" in caplog.text


def test_lines_without_logging_have_the_same_form(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(last_resort, "line_format", "json")
    last_resort.write_to_stderr('a "sentence"')
    line = json.loads(capfd.readouterr().err)
    assert (line["level"], line["logger"], line["message"]) == ("WARNING", "aiotasks", 'a "sentence"')
