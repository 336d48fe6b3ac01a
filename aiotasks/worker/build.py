"""Builder: a worker's runner and finisher, wired in one way for the engine, for ``drain()`` and for tests."""

from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

from ..conf import Options
from ..rows import Job
from ..store.store import Store
from ..store.wakeups import Wakeup
from .events import NULL, Observer
from .execution import Execution, RunContext
from .running.runner import Runner, Threads
from .writing.announcer import Announcer
from .writing.finisher import Finisher

__all__ = ["Builder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Builder:
    """Makes the parts that run the tasks of one backend and write their outcomes.

    backend: the backend's alias. sender: its class, the sender of signals. observer: gets the events
    of both parts.
    """

    backend: str
    sender: type
    options: Options
    observer: Observer = NULL

    def runner(
        self,
        *,
        threads: Threads,
        make_context: Callable[[], RunContext],
        done: Callable[[Execution], None],
        closing: Callable[[], bool] = lambda: False,
        importer: Executor | None = None,
    ) -> Runner:
        return Runner(
            sender=self.sender,
            options=self.options,
            threads=threads,
            make_context=make_context,
            done=done,
            closing=closing,
            importer=importer,
            observer=self.observer,
        )

    def finisher(
        self,
        store: Store,
        *,
        make_context: Callable[[], RunContext],
        wake: Callable[[Sequence[Wakeup]], None] = lambda wakeups: None,
        settled: Callable[[Job | None], None] = lambda job: None,
        wrap: Callable[[Coroutine[Any, Any, None]], Coroutine[Any, Any, None]] | None = None,
    ) -> Finisher:
        """Make a Finisher with its Announcer.

        wake: gets a wake-up for each row that is READY again. settled: is called once a job's outcome is
        written (or never will be), and with None once receivers of ``task_finished`` have ended. wrap: see
        ``Announcer``.
        """
        announcer = Announcer(
            sender=self.sender,
            options=self.options,
            make_context=make_context,
            announced=lambda: settled(None),
            wrap=wrap,
        )
        return Finisher(
            store,
            announcer,
            backend=self.backend,
            options=self.options,
            wake=wake,
            settled=settled,
            observer=self.observer,
        )
