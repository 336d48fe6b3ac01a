"""Django's connection and aiotasks', side by side, where their settings lead to different sessions."""

import asyncio
import re
from concurrent.futures import Future

from ..db.connection_thread import ConnectionThread, fulfil
from ..db.drivers import DjangoDriver, Driver
from ..sync import drive
from .inspection import InspectionStatements, Session

__all__ = ["GETS_IN", "differences", "djangos_session", "our_session"]

# The remedy where Django's connection can log in and aiotasks' can't.
GETS_IN = (
    "Django's own connection can log in. aiotasks uses the values that get_connection_params() of the "
    "database's engine returns, and none that get_new_connection() adds: override the former."
)


async def our_session(driver: Driver) -> Session:
    return await InspectionStatements(driver).describe_session()


async def djangos_session(alias: str, *, timeout: float) -> Session:
    """Open Django's connection to ``DATABASES[alias]``, describe its session, and close it.

    Raises any error that Django raises, and TimeoutError after ``timeout`` seconds.
    """
    thread = ConnectionThread("aiotasks-session")
    future: Future[Session] = Future()
    thread.put(lambda: fulfil(future, lambda: drive(our_session(DjangoDriver(alias))), (), {}))
    thread.stop()  # after that
    async with asyncio.timeout(timeout):
        return await asyncio.wrap_future(future)


def differences(alias: str, theirs: Session, ours: Session) -> list[tuple[str, str]]:
    """Return the differences between Django's session and aiotasks', each with its remedy."""
    options = f"DATABASES[{alias!r}]['OPTIONS']"
    found: list[tuple[str, str]] = []

    def differ(what: str, django: str, here: str, remedy: str) -> None:
        found.append((f"Django's connection {what} {django}, aiotasks' {here}", remedy))

    if theirs.server_since != ours.server_since:
        differ(
            "leads to the server at",
            theirs.address or "a socket",
            f"to another at {ours.address or 'a socket'}",
            f"Name the server in HOST and PORT of DATABASES[{alias!r}].",
        )
    if theirs.database != ours.database:
        differ(
            "is to the database",
            repr(theirs.database),
            f"to {ours.database!r}",
            f"Name it in NAME of DATABASES[{alias!r}].",
        )
    if theirs.session_user != ours.session_user:
        differ(
            "logs in as",
            repr(theirs.session_user),
            f"as {ours.session_user!r}",
            "Have get_connection_params() of the engine return that user, not get_new_connection().",
        )
    elif theirs.current_user != ours.current_user:
        differ(
            "has SET ROLE",
            repr(theirs.current_user),
            f"is {ours.current_user!r}",
            f'Write "assume_role": {theirs.current_user!r} in {options} instead.',
        )
    if theirs.search_path != ours.search_path:
        path = re.sub(r"([\\\s])", r"\\\1", re.sub(r",\s+", ",", theirs.search_path))
        differ(
            "has the search_path",
            theirs.search_path,
            f"has {ours.search_path}",
            f'Write "options": {f"-c search_path={path}"!r} in {options}, or ALTER ROLE '
            f"{ours.session_user} SET search_path = {theirs.search_path}; what connection_created or "
            "init_connection_state() does isn't seen by aiotasks.",
        )
    if theirs.ssl and not ours.ssl:
        differ("is", "encrypted", "isn't", f'Write "sslmode": "require" in {options}.')
    return found
