"""Check ``database``: the server answers, takes writes, and is new enough."""

from django.db import connections

from .examination import Examination
from .finding import Result

__all__ = ["check"]


async def check(examination: Examination) -> Result:
    """Return whether the server can be used; sets ``server`` on the examination."""
    examination.server = server = await examination.store.inspect_server()
    major, minor = divmod(server.version, 10_000)
    version = f"PostgreSQL {major}.{minor}"
    where = f"DATABASES[{examination.database!r}]"
    if server.read_only:
        return (
            "error",
            f"{version} at {where} is read-only, perhaps a standby.",
            "Give it the primary's address, or several hosts with target_session_attrs=read-write.",
        )
    needed = connections[examination.database].features.minimum_database_version
    if needed and major < needed[0]:
        return "error", f"{version} is older than Django supports.", f"Upgrade to {needed[0]} or newer."
    return "ok", f"{version} answers at {where}.", ""
