"""Check ``session``: Django's connection and aiotasks' have the same role, schemas and safety."""

from ...store.session import differences, djangos_session, our_session
from .examination import Examination
from .finding import Result

__all__ = ["check"]


async def check(examination: Examination) -> Result:
    """Return whether the two sessions are alike."""
    alias = examination.database
    ours = await our_session(examination.connection)
    try:
        theirs = await djangos_session(alias, timeout=examination.timeout)
    except Exception as error:  # a database engine may raise anything  # noqa: BLE001
        return (
            "warning",
            f"Django's own connection fails, where aiotasks' doesn't: {type(error).__name__}: {error}",
            "See what the engine, or a receiver of connection_created, adds to the settings.",
        )
    differing = differences(alias, theirs, ours)
    if not differing:
        return "ok", f"Django's connection and aiotasks' are alike: role {ours.current_user}.", ""
    same = theirs[-2:] == ours[-2:] and theirs.server_since == ours.server_since
    if same and theirs._replace(search_path=ours.search_path)[:4] == ours[:4] and theirs.ssl <= ours.ssl:
        # As with django-tenants, whose search_path is for the site's tables.
        return (
            "ok",
            f"Django's connection and aiotasks' find the same tables: role {ours.current_user}.",
            "",
        )
    return (
        "warning" if same else "error",
        "; ".join(what for what, _ in differing) + ".",
        " ".join(remedy for _, remedy in differing),
    )
