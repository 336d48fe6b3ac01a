"""From Django's settings of a database to an asyncpg connection.

asyncpg is given what Django's engine would give psycopg. The engine is asked at every connect, so test
database names, rotating passwords and subclassed engines hold for both.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import asyncpg
from django.db import connections, utils

from ..compat import declare_array_types
from . import libpq
from .drivers import Connection
from .errors import Code, django_errors, is_away, sqlstate

__all__ = ["PLAIN_SESSION", "SESSION", "Arguments", "connect", "connect_arguments"]


@dataclass(frozen=True, slots=True)
class Arguments:
    """What ``asyncpg.connect`` is called with, for one database.

    shared: the arguments that are the same for all of its servers.
    servers: those that differ from one server to the next, in the order in which they are tried.
    contexts: the values of ``ssl`` to try with each server, in this order: a context, asyncpg's "prefer", or
        False for plain text.
    unknown: the names of parameters that asyncpg has no equivalent for (a system check reports them).
    """

    shared: dict[str, Any]
    servers: list[dict[str, Any]]
    contexts: Sequence[ssl.SSLContext | str | bool]
    unknown: list[str]


def connect_arguments(alias: str) -> Arguments:
    """Read the parameters of ``DATABASES[alias]``, as libpq does for Django's own connection.

    Raises NotSupportedError if a parameter asks for safety that asyncpg can't give, and any error of a
    subclassed engine, of a file or of an unusable value.
    """
    wrapper = connections[alias]
    options = wrapper.settings_dict["OPTIONS"]
    parameters = libpq.resolve(wrapper.get_connection_params())
    for name, demand, remedy in libpq.not_kept(parameters):
        source = "" if name in options else " (in the environment or a service file)"
        raise utils.NotSupportedError(
            f"DATABASES[{alias!r}] asks for {demand}{source}, which asyncpg doesn't support, so aiotasks "
            f"doesn't connect. {remedy}"
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
    if (timeout := float(parameters.get("connect_timeout", 0))) > 0:  # else libpq waits forever
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
        # A primary counts only where no server is a standby, so asyncpg has to see them all.
        columns = {name: [server[name] for server in servers] for name in ("host", "port")}
        servers = [{**columns, "password": next((one["password"] for one in servers if one["password"]), "")}]
    return Arguments(shared, servers, _contexts(parameters), libpq.unknown(parameters))


def _contexts(parameters: Mapping[str, str]) -> Sequence[ssl.SSLContext | str | bool]:
    mode = libpq.ssl_mode(parameters)
    if all((host or "").startswith("/") for host, _ in libpq.servers(parameters)):
        return [False]  # a Unix socket has no SSL, whatever the parameters ask for
    if mode == "prefer" and libpq.is_without_files(parameters):
        return ["prefer"]  # without SSL it continues over the same connection
    context = libpq.ssl_context(parameters) or False
    return {"allow": [False, context], "prefer": [context, False]}.get(mode, [context])


# The statements of aiotasks are planned once a session, for any number of rows, by their indexes. By default
# PostgreSQL plans a statement five times and then keeps a plan that suits the table of that moment: one that
# was made while the table was small (a sequential scan, a sort) stays when 100,000 rows arrive, and takes 40
# to 275 ms instead of 1 ms until the next ANALYZE. Planning at every run costs 0.25 ms. Not startup
# parameters, because poolers refuse those.
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


# Seconds for which one of several hosts is tried alone; after them the next one is tried beside it.
HOST_DELAY = 0.25


async def connect(alias: str, *, timeout: float, statement_cache_size: int, **options: Any) -> Connection:
    """Open a connection to ``DATABASES[alias]``, within ``timeout`` seconds for each of its hosts.

    Without a statement cache (behind a pooler in transaction mode, whose sessions are shared) no setting is
    SET, and every statement is planned at every run.
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
        declare_array_types(connection)
        if statement_cache_size:
            try:
                await connection.execute(SESSION, timeout=timeout)
            except BaseException:  # cancelled, or the connection broke: no caller can close it
                connection.terminate()
                raise
    return connection


async def _open(arguments: dict[str, Any], contexts: Iterable[ssl.SSLContext | str | bool]) -> Connection:
    """Return a connection to one server, by the first of ``contexts`` that it accepts.

    Raises the most useful of its refusals.
    """
    refusal: Exception = ValueError("no SSL context was given")
    for context in contexts:
        try:
            return await asyncpg.connect(**arguments, ssl=context)
        except (OSError, asyncpg.PostgresError) as error:
            # A refusal of the user or password is more useful than one of the encryption.
            if not isinstance(refusal, asyncpg.PostgresError):
                refusal = error
            if not _is_about_ssl(error):
                break
    raise refusal


def _is_about_ssl(error: Exception) -> bool:
    """Whether the server may take a connection with SSL that it refused without, or the other way round."""
    if isinstance(error, ssl.SSLError | asyncpg.ConnectionDoesNotExistError):
        return True
    if isinstance(error, ConnectionError):  # the server has no SSL, or ended the handshake
        return not isinstance(error, ConnectionRefusedError)
    return sqlstate(error) == Code.LOGIN_REFUSED  # no entry of pg_hba.conf is for it


async def _first(
    connect: Callable[[dict[str, Any]], Awaitable[Connection]], servers: Iterable[dict[str, Any]]
) -> Connection:
    """The connection to the first server that accepts one, in their order.

    asyncpg tries them one after another within one time-out, which a host that doesn't answer uses up. So the
    next one is tried as well after HOST_DELAY, as browsers do (RFC 8305). Raises the most useful error if no
    server accepts a connection.
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
    """Close a connection that came after a faster one, or after its caller had been cancelled.

    Awaiting it instead, between a connection and its caller, would lose that one to a cancellation.
    """
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().terminate()


def _says_little(error: Exception) -> int:
    """The order in which errors of several hosts count: a wrong password before no answer, and no answer
    before an answer that no client can write."""
    if is_away(error):
        return 2
    return 0 if isinstance(error, asyncpg.PostgresError) else 1
