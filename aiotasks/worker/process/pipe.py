"""SupervisorPipe: a worker's end of the pipe to its supervisor.

The pipe is a socket pair. The supervisor makes one for each worker:

- the worker sends a byte when it has reached its database: only then does the supervisor start
  the others, so that a mistake in the settings is logged once;
- the supervisor sends a byte to end the grace. A second SIGTERM wouldn't do:
  systemd, by default, sends its own SIGTERM to every process of a service;
- the end of the stream means that the supervisor has ended, for whatever reason.
"""

import os
import socket
from contextlib import suppress
from typing import Literal

__all__ = ["SupervisorPipe"]


class SupervisorPipe:
    """A worker's end; ``fileno`` is the value of ``--supervised``. Raises OSError if that is no socket."""

    def __init__(self, fileno: int) -> None:
        end = socket.socket(fileno=fileno)
        end.setblocking(False)
        end.set_inheritable(False)  # by processes that tasks start
        self.fileno = end.detach()  # open for as long as the process lives

    def read(self) -> Literal["hurry", "gone", ""]:
        """Return the next message: the grace is over, or the supervisor has ended; "" if there is none."""
        try:
            byte = os.read(self.fileno, 1)
        except BlockingIOError:
            return ""
        except OSError:
            return "gone"
        return "hurry" if byte else "gone"

    def notify_ready(self) -> None:
        """Notify the supervisor that this worker has reached its database."""
        with suppress(OSError):  # the supervisor has ended, which read() returns
            os.write(self.fileno, b"\n")
