"""JoiningTasks: tasks that wait for other tasks, and give up their slots meanwhile."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from concurrent import futures
from contextlib import asynccontextmanager, contextmanager

from ...rows import AnyTask, Job, Lane, lane_of
from ..execution import Execution, Reason
from ..protocols import HasSlots

__all__ = ["MOST_WITHOUT_SLOT", "JoiningTasks"]

logger = logging.getLogger("aiotasks.worker")

# Tasks that wait without a slot, at most: each takes some kilobytes, and each counts a crash if the worker is
# killed. More of them keep their slots, so that the worker claims no more.
MOST_WITHOUT_SLOT = 10_000


class JoiningTasks:
    """The executions of one worker that wait for other tasks.

    A coroutine whose own asyncio task waits gives up its slot, and takes one again before it goes on: it
    would keep the tasks that it waits for from running. Other code keeps its slot: a thread, or an asyncio
    task that a body has started, beside which the body goes on.

    running: the executions of the worker. freed: is called with the job that has given up its slot. queues:
    those that the worker serves; empty: any.
    """

    def __init__(
        self,
        slots: HasSlots,
        running: set[Execution],
        *,
        freed: Callable[[Job], None],
        queues: Collection[str],
    ) -> None:
        self._slots = slots
        self._running = running
        self._freed = freed
        self._queues = frozenset(queues)
        self._without_slot = 0
        self._stuck: set[Execution] = set()  # they wait for what this worker would run in their lanes
        self._cancels: set[tuple[Execution, Callable[[], object]]] = set()  # the joins in threads
        self._warned = False

    @asynccontextmanager
    async def waiting(self, execution: Execution, joined: Collection[AnyTask]) -> AsyncIterator[None]:
        """The execution's code awaits the ends of ``joined`` while the block lasts."""
        if not self._may_give_up(execution):
            with self.waiting_in_thread(execution, joined):
                yield
            return
        execution.has_slot = False
        self._without_slot += 1
        self._slots.release(execution.lane)
        self._freed(execution.job)
        try:
            yield
        finally:
            await self._take_again(execution)

    @contextmanager
    def waiting_in_thread(
        self, execution: Execution, joined: Collection[AnyTask]
    ) -> Iterator[Callable[[Callable[[], object]], None]]:
        """The same for code that keeps its slot. May be called in any thread.

        The block gets a function to be called with what cancels its wait, which is done once nobody waits for
        the execution's end. Then CancelledError is raised.
        """
        mine: list[tuple[Execution, Callable[[], object]]] = []

        def cancelled_by(cancel: Callable[[], object]) -> None:
            mine.append((execution, cancel))
            self._cancels.update(mine)
            if execution.is_cancelled():
                self.interrupt(execution, execution.asked_to_end or "shutdown")

        if is_stuck := any(self._runs_here(execution.lane, task) for task in joined):
            self._stuck.add(execution)
            self._check(execution.lane)
        try:
            yield cancelled_by
        except futures.CancelledError:
            # No Exception, which a body might catch to join again.
            raise asyncio.CancelledError("nobody waits for the end of the task that joins") from None
        finally:
            self._cancels.difference_update(mine)
            if is_stuck:
                self._stuck.discard(execution)

    def interrupt(self, execution: Execution, reason: Reason) -> bool:
        """Cancel the joins of an execution in threads; returns whether there are any."""
        found = [cancel for each, cancel in list(self._cancels) if each is execution]
        if found and execution.cancelled_for is None:
            execution.cancelled_for = reason
        for cancel in found:
            cancel()
        return bool(found)

    def _may_give_up(self, execution: Execution) -> bool:
        return (
            not execution.in_thread
            and execution.has_slot
            and execution in self._running
            and asyncio.current_task() is execution.task
            and self._without_slot < MOST_WITHOUT_SLOT
        )

    async def _take_again(self, execution: Execution) -> None:
        """Wait for a slot. An execution that was given up meanwhile needs none.

        One that the worker has cancelled doesn't wait, because its clean-up is short. Any other
        CancelledError is its body's (``asyncio.timeout()``), which goes on after it, and so is raised once
        there is a slot.
        """
        cancelled: asyncio.CancelledError | None = None
        while True:
            if execution.is_cancelled() or execution not in self._running:
                self._take_at_once(execution)
                break
            try:
                await self._slots.take_again(execution.lane)
            except asyncio.CancelledError as error:
                cancelled = error
                continue
            self._without_slot -= 1
            if execution in self._running:
                execution.has_slot = True
            else:
                self._slots.release(execution.lane)
            break
        if cancelled is not None:
            raise cancelled

    def _take_at_once(self, execution: Execution) -> None:
        self._without_slot -= 1
        if execution in self._running:
            self._slots.take(execution.lane)
            execution.has_slot = True

    def _runs_here(self, lane: Lane, task: AnyTask) -> bool:
        return lane_of(task.func) == lane and (not self._queues or task.queue_name in self._queues)

    def _check(self, lane: Lane) -> None:
        """Log, once, that no slot of the lane is left for the tasks that those in all slots wait for."""
        if self._warned or self._slots.free(lane) > 0:
            return
        holding = [each for each in list(self._running) if each.lane == lane and each.has_slot]
        if holding and all(each in self._stuck for each in holding):
            self._warned = True
            logger.warning(
                "All slots are taken by tasks that wait for tasks of the same worker's queues; if no other "
                "worker runs those, they wait forever lane=%s paths=%s",
                lane,
                ", ".join(sorted({each.job.task_path for each in holding})),
            )
