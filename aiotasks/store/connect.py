"""From Django's settings of a database to an asyncpg connection.

asyncpg is given what Django's engine would give psycopg, asked anew at every connect: test
database names, rotating passwords and subclassed engines hold for both.
"""

import re
from typing import Any
from urllib.parse import urlencode

import asyncpg
from django.db import connections, utils

from .drivers import django_errors

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


async def connect(
    alias: str, *, timeout: float, statement_cache_size: int, **options: Any
) -> "asyncpg.Connection[asyncpg.Record]":
    """Open a connection to ``DATABASES[alias]``, within ``timeout`` seconds.

    Without a statement cache (a pooler in transaction mode, where a session isn't ours to SET)
    every statement is planned anew as it is.
    """
    try:
        arguments, _ = connect_arguments(alias)
    except Exception as error:  # a subclassed engine may ask a vault for the password
        raise utils.OperationalError(f"DATABASES[{alias!r}] can't be used: {error}") from error
    arguments.setdefault("timeout", timeout)
    with django_errors():
        connection = await asyncpg.connect(**arguments, statement_cache_size=statement_cache_size, **options)
        if statement_cache_size:
            try:
                await connection.execute(SESSION, timeout=timeout)
            except BaseException:  # cancelled, or the line died: nobody else knows of it yet
                connection.terminate()
                raise
    return connection
