"""HangHandler: gives up the tasks of a worker whose event loop hangs. Runs in other threads."""

import threading
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from ..executing import current
from .events import Observer
from .execution import Execution
from .handover import Handover
from .lease.lease import Lease
from .process.exits import leave_now
from .protocols import Beats, Runs
from .stacks import stack_of_thread

if TYPE_CHECKING:
    import asyncio

__all__ = ["HangHandler"]

# Seconds for handing the tasks over. Chosen: some statements over a connection that is open, or to be opened.
HANG_TIMEOUT = 1.0


class HangHandler:
    """Hands the tasks over to other workers and ends the process; if the process isn't the worker's own, lets
    the lease run out. Made on the loop that it is for.
    """

    def __init__(
        self,
        lease: Lease,
        heartbeat: Beats,
        runner: Runs,
        handover: Handover,
        observer: Observer,
        *,
        own_process: bool,
    ) -> None:
        self._lease = lease
        self._heartbeat = heartbeat
        self._runner = runner
        self._handover = handover
        self._observer = observer
        self._own_process = own_process
        self._loop_thread = threading.get_ident()

    def give_up(self, timeout: float, *, blamed: Collection[Execution]) -> None:
        """Hand the tasks over within about ``timeout`` seconds; ``blamed`` count as crashed."""
        # Without a lease the loop claims and starts nothing more, should it go on.
        worker_id = self._lease.end()
        if worker_id is not None:
            self._heartbeat.stop(self._handover.prepare(worker_id, timeout, blamed=blamed))
        self._heartbeat.join(timeout)

    def hung(self, seconds: float, task: "asyncio.Task[Any] | None") -> None:
        """The loop has been blocked for LOOP_TIMEOUT, in ``task`` if in one."""
        execution = None if task is None else task.get_context().get(current)
        self._observer.hung(
            seconds,
            None if execution is None else execution.job,
            stack_of_thread(self._loop_thread),
            process_ends=self._own_process,
        )
        if not self._own_process:
            self._heartbeat.suspend()  # the process, and what else runs in it, is the site's
            return
        # A callback that hangs has no task to name: it may be of any coroutine task.
        in_coroutines = [one for one in list(self._runner.running) if not one.in_thread]
        self.give_up(HANG_TIMEOUT, blamed=in_coroutines if execution is None else [execution])
        leave_now(1)

    def back(self) -> None:
        """The loop goes on: renew the lease again."""
        self._heartbeat.resume()
