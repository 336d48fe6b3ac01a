"""File descriptors 0, 1 and 2: whoever starts a process may have closed them."""

import os
import sys

__all__ = ["open_standard_descriptors"]


def open_standard_descriptors() -> None:
    """Open those of stdin, stdout and stderr that are closed on the null device.

    The next sockets and files that the process opens would get their numbers otherwise: uvloop aborts when
    it closes one of those, and what is printed would go to whatever is there.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest number that is free, which is this one: those below are open.
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)  # as the standard descriptors are
        if getattr(sys, name) is None:  # Python found it closed at its start
            # It stays open for as long as the process lives.
            stream = open(number, mode, closefd=False, encoding="utf-8", errors="replace")  # noqa: SIM115
            setattr(sys, name, stream)
