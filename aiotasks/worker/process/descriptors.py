"""File descriptors 0, 1 and 2: a process may be started with some of them closed."""

import os
import sys

__all__ = ["open_standard_descriptors"]


def open_standard_descriptors() -> None:
    """Open stdin, stdout and stderr on the null device where they are closed.

    Otherwise the next sockets and files would get their numbers: uvloop aborts when it closes one of them,
    and printed text would go into a socket.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # It gets the lowest free number, which is this one: the numbers below are open.
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)  # as the standard descriptors are
        if getattr(sys, name) is None:  # Python found it closed at its start
            # It stays open for as long as the process lives.
            stream = open(number, mode, closefd=False, encoding="utf-8", errors="replace")  # noqa: SIM115
            setattr(sys, name, stream)
