"""Lines on stderr about logging itself, written without ``logging``."""

import json
import os
import select
import sys
import time
from datetime import UTC, datetime

from .formats import Format

__all__ = ["LoggingFailures", "failures", "write_to_stderr"]

# Seconds between two lines on stderr about exceptions of the site's logging.
REPORT_INTERVAL = 60.0

# How the lines are written; set by options.py.
line_format: Format = "text"


def write_to_stderr(sentence: str) -> None:
    """Write a line to stderr without ``logging``, or nothing if that would block."""
    if line_format == "json":
        at = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        record = {"time": at, "level": "WARNING", "logger": "aiotasks", "message": sentence}
        line = json.dumps(record) + "\n"
    else:
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} aiotasks: {sentence}\n"
    try:
        if sys.stderr is None:
            return
        fileno = sys.stderr.fileno()
        poll = select.poll()
        poll.register(fileno, select.POLLOUT)
        if any(event == select.POLLOUT for _, event in poll.poll(0)):
            os.write(
                fileno, line.encode(errors="replace")[:4000]
            )  # a pipe that can be written to has room for a page
    except (OSError, ValueError):
        pass  # stderr is closed, or isn't a file of the operating system


class LoggingFailures:
    """Reports exceptions of the site's logging: the first at once, then their number once a minute."""

    def __init__(self) -> None:
        self._count = 0
        self._next = 0.0

    def report(self, error: BaseException) -> None:
        """Count ``error``, and write a line if a minute has passed since the last one."""
        self._count += 1
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + REPORT_INTERVAL
        traceback = error.__traceback__
        while traceback is not None and traceback.tb_next is not None:
            traceback = traceback.tb_next
        where = (
            f" at {traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}"
            if traceback is not None
            else ""
        )
        try:
            what = repr(error)[:300]
        except Exception:  # __repr__ is the site's code, too  # noqa: BLE001
            what = type(error).__name__
        write_to_stderr(f"the site's logging raised {what}{where} count={self._count}")
        self._count = 0


failures = LoggingFailures()
