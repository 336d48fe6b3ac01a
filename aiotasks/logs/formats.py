"""How the worker's own handler writes a record: as text for people, or as a line of JSON for collectors."""

import json
import logging
import re
from datetime import UTC, datetime
from typing import Any, Literal

__all__ = ["FORMATS", "Format", "JsonFormatter", "TextFormatter", "printable"]

type Format = Literal["text", "json"]

# Characters that could forge lines in a terminal or a log: all controls but line ends and tabs.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_CONTROLS_AND_LINE_ENDS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

# What a record has of itself. The rest was given by `extra`, or by the site's record factory.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def printable(text: str, *, lines: bool = False) -> str:
    """Return ``text`` with its control characters escaped; with ``lines`` its line ends and tabs stay."""
    return (_CONTROLS if lines else _CONTROLS_AND_LINE_ENDS).sub(lambda found: repr(found[0])[1:-1], text)


class TextFormatter(logging.Formatter):
    """``2026-11-29 02:16:48,381 INFO aiotasks.worker: message``, in local time. What a record has beside its
    message isn't shown.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: ``time`` (ISO 8601, UTC), ``level``, ``logger``, ``message``, then the
    fields that the record was given by ``extra``.

    What follows the first line of a message (a report, a stack) is in ``details``, the traceback of an
    exception in ``traceback``. A value that JSON doesn't have is shown as its ``str()``.
    """

    def format(self, record: logging.LogRecord) -> str:
        message, _, details = record.getMessage().partition("\n")
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": message,
        }
        fields = vars(record)
        line |= {name: value for name, value in fields.items() if name not in _OWN and name not in line}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        elif details and "traceback" not in line:  # a traceback of ours follows the message, too
            line["details"] = details
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return json.dumps(line, default=str, skipkeys=True)


FORMATS: dict[Format, type[logging.Formatter]] = {"text": TextFormatter, "json": JsonFormatter}
