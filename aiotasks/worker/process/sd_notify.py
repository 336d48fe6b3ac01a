"""ServiceManager: tells systemd how the service is: started, alive, what it does, stopping.

https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
"""

import asyncio
import os
import socket
from contextlib import suppress

from .probes import Processes, are_live

__all__ = ["ServiceManager"]

# Seconds between two status lines, which `systemctl status` shows.
STATUS_INTERVAL = 10.0

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class ServiceManager:
    """The manager behind ``address``, a path or the name of an abstract socket after ``@``.

    watchdog: the seconds within which it expects a sign of life, or None.
    """

    def __init__(self, address: str, watchdog: float | None) -> None:
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._watchdog = watchdog

    @classmethod
    def from_environment(cls) -> "ServiceManager | None":
        """Return the manager that has started this process; None if it expects no messages.

        The variables are removed: processes that this one starts must not speak for the service.
        """
        address, micros, pid = (os.environ.pop(name, "") for name in _VARIABLES)
        if not address.startswith(("/", "@")):
            return None
        is_meant = micros.isdecimal() and int(micros) > 0 and pid in ("", str(os.getpid()))
        return cls(address, int(micros) / 1_000_000 if is_meant else None)

    def notify(self, *lines: str) -> None:
        """Send such lines as ``READY=1``; returns at once, also where nobody receives them."""
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto("\n".join(lines).encode("utf-8", "replace"), self._address)

    async def run(self, processes: Processes) -> None:
        """Send a status again and again, and signs of life while an event loop runs, as ``/livez`` has it."""
        interval = STATUS_INTERVAL if self._watchdog is None else min(STATUS_INTERVAL, self._watchdog / 2)
        while True:
            found = await processes()
            alive = ["WATCHDOG=1"] if self._watchdog is not None and are_live(found) else []
            ready = sum(one.ready for one in found)
            status = found[0].status if len(found) == 1 else f"{ready} of {len(found)} processes ready"
            self.notify(f"STATUS={status}", *alive)
            await asyncio.sleep(interval)
