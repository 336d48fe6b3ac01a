"""Claims of tasks that have a limit, for the tests of the Store."""

import uuid
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from aiotasks.rows import Job, Lane, Status
from aiotasks.store.limits import KeyedClaim, KeyRequest, KeySeen, LimitRule
from aiotasks.store.outcomes import Finish
from aiotasks.store.store import Store

from .rows import claim_of

ONE = LimitRule("l", concurrency=1)
LINE = LimitRule("l", ordered=True)


async def claim_keys(
    store: Store,
    worker_id: UUID,
    *keys: str,
    rules: Sequence[LimitRule] = (ONE,),
    slots: int = 10,
    queue_name: str = "default",
    lane: Lane = "loop",
    ids: Sequence[UUID | None] = (),
    **options: Any,
) -> KeyedClaim:
    """Claim of keys of one queue; the rows of new keys are made first, as a worker does."""
    requests = [
        KeyRequest(queue_name, key, ids[number] if ids else None) for number, key in enumerate(keys or ("l",))
    ]
    claim = (worker_id, "default", lane, slots, requests, rules)
    for _ in range(2):
        found = await store.claim_keyed(claim[0], uuid.uuid4(), *claim[1:], **options)
        new = [one.key for one in found.seen if one.state == "new"]
        if not new:
            break
        assert found.jobs == [] or len(new) < len(requests)
        await store.insert_limits("default", new)
    return found


def ids_of(claim: KeyedClaim) -> list[UUID]:
    """The jobs' ids, in the order of their enqueues."""
    return sorted(job.id for job in claim.jobs)


def states(claim: KeyedClaim) -> list[str]:
    return [one.state for one in claim.seen]


def only(claim: KeyedClaim) -> KeySeen:
    (seen,) = claim.seen
    return seen


async def fail(store: Store, job: Job) -> None:
    assert (await store.finish_jobs([Finish(*claim_of(job), Status.FAILED, None, "{}")])).at
