"""What row-level security on our tables keeps from a role. PostgreSQL says it of an INSERT alone: hidden rows
look like rows that aren't there.
https://www.postgresql.org/docs/current/ddl-rowsecurity.html
"""

from collections.abc import Container, Sequence
from typing import NamedTuple

__all__ = ["WORKER", "Restriction", "told"]

# What a worker needs, each as in a GRANT: docs/reference/permissions.md.
WORKER = (
    *("SELECT ON aiotasks_task", "UPDATE ON aiotasks_task", "DELETE ON aiotasks_task"),
    *(f"{kind} ON aiotasks_worker" for kind in ("SELECT", "INSERT", "UPDATE", "DELETE")),
)

_POLICY = "CREATE POLICY aiotasks ON {table} TO {role} USING (true) WITH CHECK (true)"


class Restriction(NamedTuple):
    """A kind of statement that policies don't allow for every row of a table. ``for_some``: they may allow
    it for some; else nothing is to be had. ``policies``: those that there are for it and for this role."""

    table: str
    kind: str
    for_some: bool
    policies: Sequence[str]

    @property
    def right(self) -> str:
        """As in a GRANT."""
        return f"{self.kind} ON {self.table}"


def told(
    role: str, restrictions: Sequence[Restriction], needed: Container[str]
) -> tuple[bool, str, str] | None:
    """Of what ``needed`` rights row-level security leaves nothing, or only a part.

    Returns whether it is nothing, a sentence, and the remedy; None where each of them is for every row.
    """
    mine = [one for one in restrictions if one.right in needed]
    if not mine:
        return None
    nothing = [one for one in mine if not one.for_some]
    of = nothing or mine
    if nothing:
        sentence = (
            f"Row-level security hides every row from role {role}, as no policy is for its "
            f"{', '.join(one.right for one in of)}."
        )
    else:
        policies = sorted({f"{policy} ON {one.table}" for one in of for policy in one.policies})
        sentence = (
            f"Row-level security lets role {role} have only the rows of the policies {', '.join(policies)}: "
            "tasks that they hide never run."
        )
    tables = sorted({one.table for one in of})
    return (
        bool(nothing),
        sentence,
        (
            f"ALTER ROLE {role} BYPASSRLS, or as the tables' owner: "
            + "; ".join(_POLICY.format(table=table, role=role) for table in tables)
        ),
    )
