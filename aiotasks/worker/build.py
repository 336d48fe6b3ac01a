"""Builder: a worker's claimer, runner and finisher, wired in one way for engine, ``drain()`` and tests."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from ..conf import Options
from ..metadata.running import Saves
from ..rows import Job
from ..store.store import Store
from ..store.wakeups import Wakeup
from .claiming.backpressure import Backpressure
from .claiming.budget import AtMost, Budget, FreeSlots
from .claiming.intake import Intake
from .claiming.keyed import KeyedClaims
from .claiming.limit_rules import LimitRules
from .claiming.loop import Claimer
from .claiming.overclaim import OverclaimPolicy
from .claiming.prefetch import Prefetch, PrefetchBuffer
from .claiming.quarantine import Quarantine
from .claiming.queue_limits import QueueLimits
from .claiming.relay import Relay
from .claiming.rotation import QueueRotation
from .events import NULL, Observer
from .execution import Execution, RunContext
from .fleet import Fleet
from .protocols import Finishes, GivesBack, HasSlots, Leases, PassesOn, Starts
from .running.deadlines import Threads
from .running.runner import Runner
from .slots import Slots
from .writing.announcer import Announcer
from .writing.finisher import Finisher
from .writing.key_closer import KeyCloser
from .writing.metadata import MetadataSaver

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
        slots: HasSlots,
        threads: Threads,
        make_context: Callable[[], RunContext],
        saves: Saves,
        done: Callable[[Execution], None],
        closing: Callable[[], bool] = lambda: False,
        importer: Executor | None = None,
        returned: Callable[[Job | None], None] = lambda job: None,
        queues: Collection[str] = (),
    ) -> Runner:
        return Runner(
            sender=self.sender,
            options=self.options,
            slots=slots,
            threads=threads,
            make_context=make_context,
            saves=saves,
            done=done,
            closing=closing,
            importer=importer,
            observer=self.observer,
            returned=returned,
            queues=queues,
        )

    def claimer(
        self,
        store: Store,
        *,
        queues: Sequence[str],
        peers: Fleet,
        lease: Leases,
        slots: Slots,
        runner: Starts,
        finisher: Finishes,
        ownership: GivesBack,
        beyond_slots: bool,
        limits: Mapping[str, int] | None = None,
        others: PassesOn | None = None,
        tell: Callable[[Collection[UUID]], None] = lambda ids: None,
        resolve: Callable[[str], Awaitable[object]],
        waits_for_rates: bool = True,
    ) -> Claimer:
        """Make a Claimer with its budget and its Intake.

        queues: their names, sorted; empty for any. peers: the workers that share the polls. beyond_slots:
        whether it may claim more tasks than there are free slots, where tasks are short. limits: how many
        tasks of a queue at a time, by its name. others: wakes other workers, if there may be some. tell: gets
        the ids of claimed tasks whose every change somebody awaits. resolve: imports the task of a path, or
        raises UnknownTask. waits_for_rates: whether limits' rates are kept.
        """
        prefetch = PrefetchBuffer(slots.threads, slots=slots, lease=lease, runner=runner, ownership=ownership)
        free_slots = FreeSlots(slots, prefetch)
        overclaim = OverclaimPolicy(slots, allowed=beyond_slots)
        budget = Budget(
            Backpressure(finisher, slots=slots.total),
            free_slots,
            overclaim,
            Prefetch(prefetch, slots, allowed=beyond_slots),
            AtMost(),
        )
        rotation = QueueRotation(store, backend=self.backend, queues=queues)
        relay = Relay(others, backend=self.backend)

        def held() -> Iterator[Job]:
            yield from (execution.job for execution in runner.running)
            yield from intake.waiting()

        queue_limits = QueueLimits(limits or {}, held=held)
        intake = Intake(
            store,
            rotation,
            backend=self.backend,
            lease=lease,
            slots=free_slots,
            budget=budget,
            queue_limits=queue_limits,
            overclaim=overclaim,
            prefetch=prefetch,
            relay=relay,
            runner=runner,
            ownership=ownership,
            tell=tell,
            observer=self.observer,
        )
        changed = asyncio.Event()
        keyed = KeyedClaims(
            store,
            intake,
            backend=self.backend,
            queues=queues,
            peers=peers,
            slots=free_slots,
            queue_limits=queue_limits,
            relay=relay,
            rules=LimitRules(resolve, waits_for_rates=waits_for_rates, observer=self.observer),
            changed=changed,
            observer=self.observer,
        )
        rotation.connect(keyed)
        return Claimer(
            intake,
            rotation,
            poll_interval=self.options.poll_interval,
            peers=peers,
            lease=lease,
            slots=free_slots,
            budget=budget,
            queue_limits=queue_limits,
            prefetch=prefetch,
            quarantine=Quarantine(runner),
            keyed=keyed,
            relay=relay,
            changed=changed,
            observer=self.observer,
        )

    def finisher(
        self,
        store: Store,
        *,
        make_context: Callable[[], RunContext],
        wake: Callable[[Sequence[Wakeup]], None] = lambda wakeups: None,
        tell: Callable[[Collection[UUID]], None] = lambda ids: None,
        settled: Callable[[Job | None], None] = lambda job: None,
        wrap: Callable[[Coroutine[Any, Any, None]], Coroutine[Any, Any, None]] | None = None,
    ) -> Finisher:
        """Make a Finisher with its Announcer and its MetadataSaver.

        wake: gets a wake-up for each row that is READY again. tell: gets the ids of written rows that
        somebody awaits. settled: is called once a job's outcome is written (or never will be), and with None
        once receivers of ``task_finished`` have ended. wrap: see ``Announcer``.
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
            MetadataSaver(store, redact=self.options.redact, observer=self.observer, tell=tell),
            KeyCloser(store, backend=self.backend, observer=self.observer),
            backend=self.backend,
            options=self.options,
            wake=wake,
            tell=tell,
            settled=settled,
            observer=self.observer,
        )
