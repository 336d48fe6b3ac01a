"""Ctrl-C as a request to stop, which the demo meets between two steps and never inside one."""

import signal
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """The process was asked to stop by `signum`."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Interrupts:
    """Take the first signal as a request to stop, and ignore the rest.

    Python's own handler raises KeyboardInterrupt wherever the program happens to be: while it starts or stops
    PostgreSQL too, which would then be left running.

    signum: the signal that arrived, or None.
    on_interrupt: called when it arrives, between any two bytecodes of the main thread.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.on_interrupt: Callable[[], object] | None = None

    def install(self) -> None:
        """Handle the signals until the process ends."""
        for signum in _SIGNALS:
            # nohup, and shells for jobs in the background, have signals ignored; they stay ignored.
            if signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, self._receive)

    def check(self) -> None:
        """Raise Interrupted if a signal has arrived."""
        if self.signum is not None:
            raise Interrupted(self.signum)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        # SIG_IGN, because Python resets handlers written in Python to the default at its end.
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        self.signum = signum
        if self.on_interrupt is not None:
            self.on_interrupt()
