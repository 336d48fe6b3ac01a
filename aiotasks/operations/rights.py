"""Whether a role has been granted what it needs: README.md, Permissions."""

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from .findings import Result

__all__ = ["judge"]

SITE = ("SELECT ON aiotasks_task", "INSERT ON aiotasks_task")
WORKER = (
    *("SELECT ON aiotasks_task", "UPDATE ON aiotasks_task", "DELETE ON aiotasks_task"),
    *(f"{kind} ON aiotasks_worker" for kind in ("SELECT", "INSERT", "UPDATE", "DELETE")),
)


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
