"""QueueLimits: at most so many tasks of a queue at a time in this worker."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from ...rows import LANES, Job, Lane, LaneRequest

__all__ = ["Learned", "QueueLimits"]


@dataclass(frozen=True, slots=True)
class Learned:
    """What a claim says of the limited queues.

    left: lanes that it left out of a queue that has room still, and that may have tasks of it. filled: queues
    that have reached their limits by it, and hadn't since a claim found fewer tasks than there was room for.
    """

    left: AbstractSet[Lane] = frozenset()
    filled: Sequence[str] = ()


class QueueLimits:
    """Narrows each claim to the room that the limited queues have.

    A queue at its limit isn't asked, so it holds up no other; ``has_room_again()`` tells when it may be. A
    limit is for both lanes together, and a claim asks both at once, so each claim gives the room to one of
    them, by turns.

    limits: by queue name. held: returns the jobs that are claimed and haven't ended; it is called only where
    there are limits.
    """

    def __init__(self, limits: Mapping[str, int], *, held: Callable[[], Iterable[Job]]) -> None:
        self._limits = limits
        self._held = held
        self._at_limit: set[str] = set()
        self._told: set[str] = (
            set()
        )  # queues that were at their limits, and have more tasks for all that is known
        self._room: dict[str, int] = {}  # of the claim under way
        self._last: dict[str, Lane] = {}  # the lane that had the room in the last claim that asked both
        self._withheld: dict[str, Lane] = {}  # the lane that doesn't have it in the claim under way
        self._empty: dict[str, set[Lane]] = {}  # lanes that had fewer tasks than there was room for

    @property
    def at_limit(self) -> AbstractSet[str]:
        """The queues that have reached their limits, as far as the last claim has seen."""
        return self._at_limit

    def has_room_again(self) -> bool:
        """Return whether a queue that was at its limit has room now, so that a claim may find tasks of it."""
        if not self._at_limit:
            return False
        taken = self._count(())
        again = {name for name in self._at_limit if taken[name] < self._limits[name]}
        self._at_limit -= again
        return bool(again)

    def forget(self) -> None:
        """There may be new tasks in any lane."""
        self._empty.clear()

    def served(self, queues: list[str] | None) -> list[str] | None:
        """Return those of ``queues`` that aren't at their limits."""
        if not self._limits or queues is None:
            return queues
        taken = self._count(())
        return [name for name in queues if taken[name] < self._limits.get(name, taken[name] + 1)]

    def has(self, name: str) -> bool:
        """Return whether the queue has a limit."""
        return name in self._limits

    def room(self, name: str) -> int:
        """Return how many more tasks of a queue with a limit may run."""
        return self._limits[name] - self._count(())[name]

    def restrict(
        self, requests: Mapping[Lane, LaneRequest], unstarted: Iterable[Job]
    ) -> Mapping[Lane, LaneRequest]:
        """Return what to ask for, beside jobs that are claimed and that nothing has been done with yet."""
        if not self._limits:
            return requests
        taken = self._count(unstarted)
        self._room = {name: limit - taken[name] for name, limit in self._limits.items()}
        self._at_limit = {name for name, room in self._room.items() if room <= 0}
        self._withheld = {}
        asked = [lane for lane, request in requests.items() if request.queues and request.limit]
        if len(asked) > 1:
            self._withheld = {
                name: self._withhold(name) for name in self._limits if name not in self._at_limit
            }
        return {lane: self._narrow(lane, request) for lane, request in requests.items()}

    def learn(
        self, requests: Mapping[Lane, LaneRequest], jobs: Iterable[Job], *, unsure: Collection[Lane] = ()
    ) -> Learned:
        """Learn from the reply to a claim of these ``requests``, which ``restrict()`` has returned.

        unsure: lanes of which the claim shows nothing where it has brought nothing.
        """
        if not self._limits:
            return Learned()
        by_lane = Counter((job.queue_name, job.lane) for job in jobs)
        brought = Counter(job.lane for job in jobs)
        left: set[Lane] = set()
        filled: list[str] = []
        for name, room in self._room.items():
            lanes = [lane for lane in LANES if name in requests[lane].queues and requests[lane].limit]
            if room <= 0 or not lanes:
                continue
            if sum(by_lane[name, lane] for lane in LANES) >= room:
                self._at_limit.add(name)
                if name not in self._told:
                    self._told.add(name)
                    filled.append(name)
                continue
            withheld = self._withheld.get(name)
            empty = self._empty.setdefault(name, set())
            # A full claim may not have come to this queue.
            empty.update(
                lane
                for lane in lanes
                if lane != withheld and lane not in unsure and brought[lane] < requests[lane].limit
            )
            if withheld is not None and withheld not in empty:
                left.add(withheld)
            elif empty.issuperset(lanes):
                self._told.discard(name)
        return Learned(left, filled)

    def _count(self, unstarted: Iterable[Job]) -> Counter[str]:
        held = {job.id: job.queue_name for job in self._held()}
        held.update((job.id, job.queue_name) for job in unstarted)
        return Counter(held.values())

    def _withhold(self, name: str) -> Lane:
        """Return the lane that has to wait: by turns, if both may have tasks."""
        empty = self._empty.get(name, set())
        candidates = [lane for lane in LANES if lane not in empty] or list(LANES)
        given = next((lane for lane in candidates if lane != self._last.get(name)), candidates[0])
        self._last[name] = given
        return "thread" if given == "loop" else "loop"

    def _narrow(self, lane: Lane, request: LaneRequest) -> LaneRequest:
        kept = [
            number
            for number, name in enumerate(request.queues)
            if name not in self._at_limit and self._withheld.get(name) != lane
        ]
        names = [request.queues[number] for number in kept]
        return replace(
            request,
            queues=names,
            since=[request.since[number] for number in kept],
            lowest=[request.lowest[number] for number in kept] if request.lowest else [],
            most=[self._room.get(name, request.limit) for name in names],
        )
