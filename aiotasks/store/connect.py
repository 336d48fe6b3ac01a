"""From Django's settings of a database to an asyncpg connection.

asyncpg is given what Django's engine would give psycopg, asked anew at every connect: test
database names, rotating passwords and subclassed engines hold for both.
"""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any
from urllib.parse import urlencode

import asyncpg
from django.db import connections, utils

from .drivers import Connection, django_errors, is_away

__all__ = ["PLAIN_SESSION", "SESSION", "connect", "connect_arguments"]

# What psycopg understands and asyncpg reads from a DSN's query alone.
_IN_DSN = frozenset(
    {
        "sslmode",
        "sslcert",
        "sslkey",
        "sslrootcert",
        "sslcrl",
        "sslpassword",
        "sslnegotiation",
        "ssl_min_protocol_version",
        "ssl_max_protocol_version",
    }
)
_RENAMED = {"dbname": "database", "connect_timeout": "timeout"}
_AS_IT_IS = frozenset(
    {
        "user",
        "password",
        "host",
        "port",
        "passfile",
        "service",
        "target_session_attrs",
        "krbsrvname",
        "gsslib",
    }
)
# Django's and psycopg's own affairs, which say nothing of the connection.
_NOT_OURS = frozenset({"client_encoding", "cursor_factory", "context", "prepare_threshold", "autocommit"})


def connect_arguments(alias: str) -> tuple[dict[str, Any], list[str]]:
    """The arguments of ``asyncpg.connect`` for ``DATABASES[alias]``.

    Returns them, and the names of the parameters that asyncpg has nothing for (a system check
    reports those).
    """
    wrapper = connections[alias]
    arguments: dict[str, Any] = {}
    settings: dict[str, str] = {"application_name": "aiotasks"}
    query: dict[str, Any] = {}
    unknown = []
    for name, value in wrapper.get_connection_params().items():
        if name in _NOT_OURS or value is None:
            continue
        if name in _IN_DSN:
            query[name] = value
        elif name in _RENAMED or name in _AS_IT_IS:
            arguments[_RENAMED.get(name, name)] = value
        elif name == "application_name":
            settings[name] = value
        elif name == "options":
            settings |= _server_settings(value)
        else:
            unknown.append(name)
    for name in ("host", "port"):
        # asyncpg reads these by itself, but tries several hosts in turn (see _first()).
        if "service" not in arguments and (value := os.environ.get(f"PG{name.upper()}")):
            arguments.setdefault(name, value)
        if isinstance(arguments.get(name), str) and "," in arguments[name]:
            arguments[name] = arguments[name].split(",")
    if isinstance(port := arguments.get("port"), list | str):
        arguments["port"] = [int(one) for one in port] if isinstance(port, list) else int(port)
    if "timeout" in arguments:
        arguments["timeout"] = float(arguments["timeout"])
    if role := wrapper.settings_dict["OPTIONS"].get("assume_role"):
        settings["role"] = role
    arguments["server_settings"] = settings
    if query:
        arguments["dsn"] = f"postgresql:///?{urlencode(query)}"
    return arguments, unknown


def _server_settings(options: str) -> dict[str, str]:
    """Read libpq's ``options``: ``-c name=value``, ``-cname=value`` or ``--name=value``."""
    settings = {}
    for word in re.findall(r"(?:\\.|\S)+", options):  # a backslash escapes; quotes are the server's affair
        word = re.sub(r"\\(.)", r"\1", word)
        name, separator, value = word.removeprefix("--").removeprefix("-c").partition("=")
        if separator:
            settings[name.replace("-", "_")] = value
    return settings


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
        arguments, _ = connect_arguments(alias)
    except Exception as error:  # a subclassed engine may ask a vault for the password
        raise utils.OperationalError(f"DATABASES[{alias!r}] can't be used: {error}") from error
    arguments.setdefault("timeout", timeout)
    with django_errors():
        connection = await _first(
            lambda host: asyncpg.connect(
                **{**arguments, **host}, statement_cache_size=statement_cache_size, **options
            ),
            _hosts(arguments),
        )
        if statement_cache_size:
            try:
                await connection.execute(SESSION, timeout=timeout)
            except BaseException:  # cancelled, or the line died: nobody else knows of it yet
                connection.terminate()
                raise
    return connection


def _hosts(arguments: dict[str, Any]) -> list[dict[str, Any]]:
    """Each of several hosts by itself; one without anything where that is left to asyncpg."""
    hosts, ports = arguments.get("host"), arguments.get("port")
    # "prefer-standby" takes a primary only where no host is a standby: asyncpg has to see them all.
    if not isinstance(hosts, list) or arguments.get("target_session_attrs") == "prefer-standby":
        return [{}]
    if not isinstance(ports, list):
        ports = [ports] * len(hosts)
    if len(ports) != len(hosts):
        return [{}]  # asyncpg says what is wrong
    return [{"host": host, "port": port} for host, port in zip(hosts, ports, strict=True)]


async def _first(
    connect: Callable[[dict[str, Any]], Awaitable[Connection]], hosts: Iterable[dict[str, Any]]
) -> Connection:
    """The connection to the first host that takes us, in their order.

    asyncpg tries them one after another within one time-out, which a host that has vanished
    without a word eats up. So the next one is tried as well after a moment, as browsers do
    (RFC 8305). Raises the error that says most where nobody takes us.
    """
    left = list(hosts)
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
