"""Log records that can't end, fail or delay a worker, and that the worker never swallows.

The loggers of this package, and those that Django and asyncio use on a worker's behalf, remain
ordinary loggers of ``logging``. They differ in three points:

- An exception of the site's handlers, filters, formatters and record factory doesn't reach the caller.
- While a worker runs in the process (``start``), a record is made where it is logged, with its time,
  caller and exception, and handed to a thread, which passes it to the handlers in a copy of the caller's
  context. The order is kept. When 10,000 records wait, further ones are dropped and counted.
- While a worker runs, a record from INFO on that the site's LOGGING shows nowhere goes to stderr, unless
  LOGGING configures a logger ``aiotasks`` or one below. ``--log-format`` and ``--log-level`` are for these.
"""

from .lifecycle import (
    PATIENCE,
    are_threaded,
    close,
    count_waiting,
    flush,
    flushed,
    flushed_at_stop,
    start,
    stop,
)
from .loggers import beside, passes_nothing, shown_by
from .options import add_log_options, apply_log_options

__all__ = [
    "PATIENCE",
    "add_log_options",
    "apply_log_options",
    "are_threaded",
    "beside",
    "close",
    "count_waiting",
    "flush",
    "flushed",
    "flushed_at_stop",
    "passes_nothing",
    "shown_by",
    "start",
    "stop",
]
