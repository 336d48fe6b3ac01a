"""From Django's settings of a database to an asyncpg connection.

asyncpg is given what Django's engine would give psycopg, asked anew at every connect: test
database names, rotating passwords and subclassed engines hold for both.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
from django.db import connections, utils

from . import libpq
from .drivers import Connection
from .errors import Code, django_errors, is_away, sqlstate

__all__ = ["PLAIN_SESSION", "SESSION", "Arguments", "connect", "connect_arguments"]


@dataclass(frozen=True, slots=True)
class Arguments:
    """What ``asyncpg.connect`` is called with, for one database.

    shared: the arguments that are the same for all of its servers.
    servers: those that differ from one server to the next, in the order in which they are tried.
    contexts: what to try with each for ``ssl``, in this order: a context, "prefer" as asyncpg has it, or
        False for plain text.
    unknown: the names of parameters that asyncpg has nothing for (a system check reports them).
    """

    shared: dict[str, Any]
    servers: list[dict[str, Any]]
    contexts: Sequence[ssl.SSLContext | str | bool]
    unknown: list[str]


def connect_arguments(alias: str) -> Arguments:
    """Read the parameters of ``DATABASES[alias]``, as libpq does for Django's own connection.

    Raises NotSupportedError where one of them asks for safety that asyncpg can't give, and whatever
    a subclassed engine, a file or a value that can't be used leads to.
    """
    wrapper = connections[alias]
    options = wrapper.settings_dict["OPTIONS"]
    parameters = libpq.resolve(wrapper.get_connection_params())
    for name, demand, remedy in libpq.not_kept(parameters):
        source = "" if name in options else " (in the environment or a service file)"
        raise utils.NotSupportedError(
            f"DATABASES[{alias!r}] asks for {demand}{source}, which asyncpg can't keep, so aiotasks doesn't "
            f"connect. {remedy}"
        )
    user = parameters.get("user") or libpq.user_name()
    database = parameters.get("dbname") or user
    settings = {"application_name": parameters.get("application_name", "aiotasks")}
    if "options" in parameters:
        settings["options"] = parameters["options"]
    if role := options.get("assume_role"):
        settings["role"] = role
    shared: dict[str, Any] = {
        "user": user,
        "database": database,
        "server_settings": settings,
        "direct_tls": parameters.get("sslnegotiation") == "direct",
        "target_session_attrs": parameters.get("target_session_attrs", "any"),
        **{name: parameters[name] for name in ("krbsrvname", "gsslib") if name in parameters},
    }
    if (timeout := float(parameters.get("connect_timeout", 0))) > 0:  # else libpq waits for ever
        shared["timeout"] = timeout
    servers: list[dict[str, Any]] = [
        {
            "host": host,
            "port": port,
            "password": libpq.password(parameters, host, port, user=user, database=database),
        }
        for host, port in libpq.servers(parameters)
    ]
    if shared["target_session_attrs"] == "prefer-standby" and len(servers) > 1:
        # A primary counts only where no server is a standby: asyncpg has to see them all.
        columns = {name: [server[name] for server in servers] for name in ("host", "port")}
        servers = [{**columns, "password": next((one["password"] for one in servers if one["password"]), "")}]
    return Arguments(shared, servers, _contexts(parameters), libpq.unknown(parameters))


def _contexts(parameters: Mapping[str, str]) -> Sequence[ssl.SSLContext | str | bool]:
    mode = libpq.ssl_mode(parameters)
    if all((host or "").startswith("/") for host, _ in libpq.servers(parameters)):
        return [False]  # a socket of this machine has no SSL, whatever is asked for
    if mode == "prefer" and libpq.is_without_files(parameters):
        return ["prefer"]  # where there is no SSL, it goes on over the same connection
    context = libpq.ssl_context(parameters) or False
    return {"allow": [False, context], "prefer": [context, False]}.get(mode, [context])


# Our statements are planned once a session, for any number of rows, by their indexes. Left to itself
# PostgreSQL plans a statement anew five times and then keeps a plan that suits the table of that
# moment: one that was made while it was small (a sequential scan, a sort) stays when 100,000 tasks
# arrive, and takes 40 to 275 ms a claim instead of 1 ms until the next ANALYZE. Planning at every run
# costs 0.25 ms a claim and a finish (0.6 instead of 0.33 ms for a single task). Not startup
# parameters: poolers refuse those.
_PLANNING = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_bitmapscan": "off",
    "jit": "off",  # a plan for any number of rows looks expensive enough for it in a large table
}
SESSION = "".join(f"SET {name} = {value};" for name, value in _PLANNING.items())
PLAIN_SESSION = "".join(f"RESET {name};" for name in _PLANNING)


# Seconds that one of several hosts has to itself; whoever is silent for longer goes on beside the next.
HOST_DELAY = 0.25


async def connect(alias: str, *, timeout: float, statement_cache_size: int, **options: Any) -> Connection:
    """Open a connection to ``DATABASES[alias]``, within ``timeout`` seconds for each of its hosts.

    Without a statement cache (a pooler in transaction mode, where a session isn't ours to SET)
    every statement is planned anew as it is.
    """
    try:
        arguments = connect_arguments(alias)
    except utils.NotSupportedError:
        raise
    except Exception as error:  # a subclassed engine may ask a vault for the password
        raise utils.OperationalError(f"DATABASES[{alias!r}] can't be used: {error}") from error
    shared = {"timeout": timeout, **arguments.shared, "statement_cache_size": statement_cache_size, **options}
    with django_errors():
        connection = await _first(
            lambda server: _open({**shared, **server}, arguments.contexts), arguments.servers
        )
        if statement_cache_size:
            try:
                await connection.execute(SESSION, timeout=timeout)
            except BaseException:  # cancelled, or the line died: nobody else knows of it yet
                connection.terminate()
                raise
    return connection


async def _open(arguments: dict[str, Any], contexts: Iterable[ssl.SSLContext | str | bool]) -> Connection:
    """A connection to one server, with SSL or without, whichever of ``contexts`` it takes first."""
    refusal: Exception | None = None
    for context in contexts:
        try:
            return await asyncpg.connect(**arguments, ssl=context)
        except (OSError, asyncpg.PostgresError) as error:
            # Of two refusals the one that speaks of the user or password says more than "no encryption".
            if refusal is None or not isinstance(refusal, asyncpg.PostgresError):
                refusal = error
            if not _is_about_ssl(error):
                break
    assert refusal is not None
    raise refusal


def _is_about_ssl(error: Exception) -> bool:
    """Whether the server may take a connection with SSL that it refused without, or the other way round."""
    if isinstance(error, ssl.SSLError | asyncpg.ConnectionDoesNotExistError):
        return True
    if isinstance(error, ConnectionError):  # it has no SSL, or ended the handshake
        return not isinstance(error, ConnectionRefusedError)
    return sqlstate(error) == Code.LOGIN_REFUSED  # no line of pg_hba.conf is for it


async def _first(
    connect: Callable[[dict[str, Any]], Awaitable[Connection]], servers: Iterable[dict[str, Any]]
) -> Connection:
    """The connection to the first host that takes us, in their order.

    asyncpg tries them one after another within one time-out, which a host that has vanished
    without a word eats up. So the next one is tried as well after a moment, as browsers do
    (RFC 8305). Raises the error that says most where nobody takes us.
    """
    left = list(servers)
    trying: set[asyncio.Future[Connection]] = set()
    errors: list[Exception] = []
    try:
        while left or trying:
            if left:
                trying.add(asyncio.ensure_future(connect(left.pop(0))))
            done, _ = await asyncio.wait(
                trying, timeout=HOST_DELAY if left else None, return_when=asyncio.FIRST_COMPLETED
            )
            for one in done:
                trying.remove(one)
                error = one.exception()
                if error is None:
                    return one.result()
                if not isinstance(error, Exception):
                    raise error
                errors.append(error)
    finally:
        for one in trying:
            one.cancel()
            one.add_done_callback(_let_go)
    raise min(errors, key=_says_little)


def _let_go(connecting: asyncio.Future[Connection]) -> None:
    """Somebody else was faster, or nobody waits any more. (To await these here, between a connection and
    its caller, would lose it to a cancellation.)"""
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().terminate()


def _says_little(error: Exception) -> int:
    """The order in which errors of several hosts count: a wrong password before silence, and silence
    before what is as it is for all who use the database."""
    if is_away(error):
        return 2
    return 0 if isinstance(error, asyncpg.PostgresError) else 1
