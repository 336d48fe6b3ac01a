"""Check ``permissions``: the role has been granted what it needs (docs/reference/permissions.md)."""

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

from ...store.row_security import LIMITS, SAMPLES, SCHEDULES, WORKER, Restriction, hidden_rows
from .examination import Examination
from .finding import Result

__all__ = ["check"]

SITE = ("SELECT ON aiotasks_task", "INSERT ON aiotasks_task")

# What an enqueue needs to choose the workers that it wakes: the columns that wake_workers reads.
WAKE = (
    "SELECT (backend, queues, concurrency, threads, listening, channel, lease_expires_at) ON aiotasks_worker"
)

# What cancelling needs, enqueueing with a unique key, a join that is to be notified, and saving the metadata
# of tasks from outside.
CANCEL = "UPDATE (status, errors, errors_omitted, finished_at, cancel_requested_at) ON aiotasks_task"
UNIQUE = "UPDATE (unique_key, former_key) ON aiotasks_task"
AWAIT = "UPDATE (awaited) ON aiotasks_task"
METADATA = "UPDATE (metadata) ON aiotasks_task"

# A role that has it may have been granted what the release before needed to cancel.
ANY_UPDATE = "UPDATE (any) ON aiotasks_task"

# The rights that only workers need. A site may have SELECT on the table of workers, for the sake of WAKE, and
# pause, change schedules, and set limits.
OTHERS_READ = ("aiotasks_worker", "aiotasks_pause", "aiotasks_schedule", "aiotasks_limit")
ONLY_WORKER = {*WORKER}.difference(SITE, (f"SELECT ON {table}" for table in OTHERS_READ))


async def check(examination: Examination) -> Result:
    """Return whether the role has the privileges that a site or a worker needs."""
    role, rights, _ = await examination.store.select_rights()
    if rights is None:
        return "not checked", "The tables are missing.", ""
    result = judge_rights(role, rights)
    if result[0] == "ok":
        result = judge_row_security(role, rights, await examination.store.select_row_security()) or result
    return result


def judge_rights(role: str, rights: AbstractSet[str]) -> Result:
    """Return the result for a role (as an SQL identifier) and its rights to the tables.

    A role that has any of the rights which only workers need is taken for a worker's.
    """
    for_site = [right for right in SITE if right not in rights]
    for_worker = [right for right in WORKER if right not in rights]
    if not for_worker:
        lacking = {
            "enqueue": for_site,
            "tick schedules": [right for right in SCHEDULES if right not in rights],
            "run tasks with limits": [right for right in LIMITS if right not in rights],
            "keep the queues' figures": [right for right in SAMPLES if right not in rights],
        }
        may = ["run a worker", *(name for name, lack in lacking.items() if not lack)]
        listed = ", ".join(may[:-1]) + " and " + may[-1] if may[1:] else may[0]
        may_not = [f", but not {name}: it lacks {', '.join(lack)}" for name, lack in lacking.items() if lack]
        return "ok", f"Role {role} may {listed}{''.join(may_not)}.", ""
    if rights & ONLY_WORKER:
        return (
            "error",
            f"Role {role} is missing privileges needed to run a worker: {', '.join(for_worker)}.",
            _grant(for_worker, role),
        )
    if not for_site and WAKE not in rights:
        return (
            "warning",
            f"Role {role} may enqueue and look up, but not choose the workers to wake: each of its enqueues "
            "wakes all workers instead of two.",
            _grant([WAKE], role),
        )
    if not for_site:
        return _judge_updates(role, rights)
    return (
        "error",
        f"Role {role} is missing privileges needed to enqueue: {', '.join(for_site)}.",
        _grant(for_site, role),
    )


def _judge_updates(role: str, rights: AbstractSet[str]) -> Result:
    """Return the result for a role that may enqueue: not every site does all of this."""
    wanted = {
        "cancel": CANCEL,
        "enqueue tasks with a unique_key": UNIQUE,
        "join tasks without polling": AWAIT,
        "save the metadata of tasks": METADATA,
    }
    lacking = {name: right for name, right in wanted.items() if right not in rights}
    if lacking and ANY_UPDATE in rights:
        return (
            "warning",
            f"Role {role} may enqueue and look up, but not {' or '.join(lacking)}.",
            _grant(lacking.values(), role),
        )
    but = " or ".join([*lacking, "run a worker"])
    return "ok", f"Role {role} may enqueue and look up, but not {but}.", ""


def _grant(rights: Iterable[str], role: str) -> str:
    return "; ".join(f"GRANT {right} TO {role}" for right in rights)


def judge_row_security(
    role: str, rights: AbstractSet[str], restrictions: Sequence[Restriction]
) -> Result | None:
    """Return the result for row-level security; None if no policy restricts what the role needs."""
    found = hidden_rows(role, restrictions, rights & {*SITE, *WORKER, *SCHEDULES, *LIMITS, *SAMPLES})
    if found is None:
        return None
    return "error" if found.all else "warning", found.sentence, found.remedy
