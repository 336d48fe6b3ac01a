"""Which rows row-level security hides from a role. PostgreSQL reports it only for INSERT: a hidden row looks
like a row that doesn't exist.
https://www.postgresql.org/docs/current/ddl-rowsecurity.html
"""

from collections.abc import Container, Sequence
from typing import NamedTuple

__all__ = ["LIMITS", "SAMPLES", "SCHEDULES", "WORKER", "HiddenRows", "Restriction", "hidden_rows"]

# What a worker needs, each as in a GRANT: docs/reference/permissions.md.
WORKER = (
    *("SELECT ON aiotasks_task", "UPDATE ON aiotasks_task", "DELETE ON aiotasks_task"),
    *(f"{kind} ON aiotasks_worker" for kind in ("SELECT", "INSERT", "UPDATE", "DELETE")),
    "SELECT ON aiotasks_pause",
    "SELECT ON aiotasks_schedule",
    "SELECT ON aiotasks_limit",
)

# And if there are schedules: it declares those of its code, and enqueues their tasks.
SCHEDULES = ("INSERT ON aiotasks_schedule", "UPDATE ON aiotasks_schedule", "INSERT ON aiotasks_task")

# And if there are tasks with limits.
LIMITS = tuple(f"{kind} ON aiotasks_limit" for kind in ("INSERT", "UPDATE", "DELETE"))

# And to keep the figures of the queues, which metrics show.
SAMPLES = tuple(f"{kind} ON aiotasks_sample" for kind in ("SELECT", "INSERT", "UPDATE", "DELETE"))

_POLICY = "CREATE POLICY aiotasks ON {table} TO {role} USING (true) WITH CHECK (true)"


class Restriction(NamedTuple):
    """A kind of statement that policies don't allow for every row of a table. ``for_some``: they may allow it
    for some rows, else for none. ``policies``: the names of the policies for it and for this role."""

    table: str
    kind: str
    for_some: bool
    policies: Sequence[str]

    @property
    def right(self) -> str:
        """The privilege, as in a GRANT."""
        return f"{self.kind} ON {self.table}"


class HiddenRows(NamedTuple):
    """Rows that a role can't see or change. ``all``: every row of a table; else some. ``remedy``: without a
    full stop at its end, because it is SQL."""

    all: bool
    sentence: str
    remedy: str


def hidden_rows(role: str, restrictions: Sequence[Restriction], needed: Container[str]) -> HiddenRows | None:
    """Return what row-level security hides from a role that needs these privileges; None: nothing."""
    mine = [one for one in restrictions if one.right in needed]
    if not mine:
        return None
    nothing = [one for one in mine if not one.for_some]
    of = nothing or mine
    if nothing:
        sentence = (
            f"Row-level security hides every row from role {role}, because no policy allows its "
            f"{', '.join(one.right for one in of)}."
        )
    else:
        policies = sorted({f"{policy} ON {one.table}" for one in of for policy in one.policies})
        sentence = (
            f"Row-level security gives role {role} only the rows of the policies {', '.join(policies)}. "
            "Hidden tasks never run."
        )
    tables = sorted({one.table for one in of})
    return HiddenRows(
        bool(nothing),
        sentence,
        (
            f"ALTER ROLE {role} BYPASSRLS, or as the tables' owner: "
            + "; ".join(_POLICY.format(table=table, role=role) for table in tables)
        ),
    )
