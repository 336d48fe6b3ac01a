"""SupervisorPipe: a worker's end of the pipe to its supervisor.

Between a supervisor and each worker there is a line, a socket pair:

- the worker sends a byte when it has reached its database: only then are the others started, so
  that a mistake in the settings is said once;
- the supervisor sends a byte when there is to be no more grace. A second SIGTERM wouldn't do:
  systemd, by default, sends its own SIGTERM to every process of a service;
- its end tells the worker that the supervisor has gone, however it went.
"""

import os
import socket
from contextlib import suppress
from typing import Literal

__all__ = ["SupervisorPipe"]


class SupervisorPipe:
    """A worker's end of the line; ``fileno`` is what ``--supervised`` says. Raises OSError for no socket."""

    def __init__(self, fileno: int) -> None:
        line = socket.socket(fileno=fileno)
        line.setblocking(False)
        line.set_inheritable(False)  # by what tasks start
        self.fileno = line.detach()  # open for as long as the process lives

    def read(self) -> Literal["hurry", "gone", ""]:
        """Return what the supervisor says now: that there is no more grace, or nothing ever again."""
        try:
            said = os.read(self.fileno, 1)
        except BlockingIOError:
            return ""
        except OSError:
            return "gone"
        return "hurry" if said else "gone"

    def tell_ready(self) -> None:
        """Tell the supervisor that this worker has started."""
        with suppress(OSError):  # it has gone, which is heard too
            os.write(self.fileno, b"\n")
