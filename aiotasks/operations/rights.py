"""Whether a role has been granted what it needs: docs/reference/permissions.md."""

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

from ..store.row_security import WORKER, Restriction, told
from .findings import Result

__all__ = ["judge", "judge_rows"]

SITE = ("SELECT ON aiotasks_task", "INSERT ON aiotasks_task")


def judge(role: str, rights: AbstractSet[str]) -> Result:
    """The verdict, sentence and remedy for a role (as an SQL identifier) and its rights to the tables.

    One that has any of the rights which only workers need is taken for a worker's.
    """
    for_site = [right for right in SITE if right not in rights]
    for_worker = [right for right in WORKER if right not in rights]
    if not for_worker:
        lacks = f", but not enqueue: it lacks {', '.join(for_site)}" if for_site else ", and enqueue"
        return "ok", f"Role {role} may run a worker{lacks}.", ""
    if rights & (set(WORKER) - set(SITE)):
        return "error", f"Role {role} lacks for a worker: {', '.join(for_worker)}.", _grant(for_worker, role)
    if not for_site:
        return "ok", f"Role {role} may enqueue and look up, but not run a worker.", ""
    return "error", f"Role {role} lacks even for enqueueing: {', '.join(for_site)}.", _grant(for_site, role)


def _grant(rights: Iterable[str], role: str) -> str:
    return "; ".join(f"GRANT {right} TO {role}" for right in rights)


def judge_rows(role: str, rights: AbstractSet[str], restrictions: Sequence[Restriction]) -> Result | None:
    """The same for row-level security and what the role may do; None where it is in nobody's way."""
    found = told(role, restrictions, rights & {*SITE, *WORKER})
    if found is None:
        return None
    nothing, sentence, remedy = found
    return "error" if nothing else "warning", sentence, remedy
