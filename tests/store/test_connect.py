"""connect_arguments: from DATABASES to asyncpg, key by key; and a connection that is made of it."""

import asyncio
import os
import pwd
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import asyncpg
import pytest
from django.db import connections, utils

from aiotasks.db import connect as connect_module
from aiotasks.db.connect import connect, connect_arguments
from aiotasks.db.errors import is_away, is_transient, sqlstate
from tests.proxy import Proxy
from tests.worker.harness import until

Database = Callable[..., str]


@pytest.fixture
def another(monkeypatch: pytest.MonkeyPatch, django_db_setup: None) -> Iterator[Database]:
    """Make an alias of DATABASES like the default one, but for what is given; its name."""

    def forget() -> None:
        with suppress(AttributeError):  # this thread hasn't got it
            del connections["another"]

    def make(options: dict[str, Any] | None = None, **settings: Any) -> str:
        params = {**connections.settings["default"], **settings, "OPTIONS": options or {}}
        forget()
        monkeypatch.setitem(connections.settings, "another", params)
        return "another"

    yield make
    forget()


def arguments(alias: str) -> dict[str, Any]:
    """What asyncpg is given, for the only server."""
    found = connect_arguments(alias)
    assert found.unknown == []
    (server,) = found.servers
    return {**found.shared, **server}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("PG"):
            monkeypatch.delenv(name)


def test_the_plain_settings(another: Database) -> None:
    alias = another(NAME="n", USER="u", PASSWORD="p", HOST="h", PORT="5433")
    assert arguments(alias) == {
        "database": "n",
        "user": "u",
        "password": "p",
        "host": "h",
        "port": 5433,
        "direct_tls": False,
        "target_session_attrs": "any",
        "server_settings": {"application_name": "aiotasks"},
    }


def test_what_is_left_out_is_as_libpq_has_it(another: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "somebody else")  # which asyncpg would take for our name
    found = arguments(another(NAME="n", USER="", PASSWORD="", HOST="", PORT=""))
    assert found["user"] == pwd.getpwuid(os.geteuid()).pw_name
    assert (found["host"], found["port"], found["password"]) == (None, 5432, "")


def test_parameters_are_asked_anew_each_time(another: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Test databases' names, rotating passwords, engines that override get_connection_params."""
    alias = another(PASSWORD="old")
    wrapper = connections[alias]
    wrapper.settings_dict["PASSWORD"] = "new"
    assert arguments(alias)["password"] == "new"
    params = wrapper.get_connection_params()
    monkeypatch.setattr(wrapper, "get_connection_params", lambda: {**params, "password": "token"})
    assert arguments(alias)["password"] == "token"


@pytest.mark.parametrize(
    ("name", "value"), [("target_session_attrs", "read-write"), ("krbsrvname", "pg"), ("gsslib", "gssapi")]
)
def test_what_asyncpg_takes_as_it_is(another: Database, name: str, value: str) -> None:
    assert arguments(another({name: value}))[name] == value


def test_timeouts_hosts_and_names(another: Database) -> None:
    alias = another(
        {"connect_timeout": "3", "application_name": "site"}, HOST="one,two", PORT="5433,5434", PASSWORD="p"
    )
    found = connect_arguments(alias)
    assert found.shared["timeout"] == 3.0
    assert found.shared["server_settings"] == {"application_name": "site"}
    assert found.servers == [
        {"host": "one", "port": 5433, "password": "p"},
        {"host": "two", "port": 5434, "password": "p"},
    ]
    alias = another({"target_session_attrs": "prefer-standby"}, HOST="one,two", PORT=5433, PASSWORD="p")
    assert connect_arguments(alias).servers == [
        {"host": ["one", "two"], "port": [5433, 5433], "password": "p"}
    ]
    assert "timeout" not in arguments(another({"connect_timeout": 0}))  # for libpq: for ever
    with pytest.raises(ValueError, match="3 ports are given for 2 hosts"):
        connect_arguments(another(HOST="one,two", PORT="1,2,3"))


def test_assume_role(another: Database) -> None:
    assert arguments(another({"assume_role": "reader"}))["server_settings"]["role"] == "reader"


@pytest.mark.parametrize("name", ["pool", "isolation_level", "server_side_binding", "assume_role"])
def test_djangos_own_options_are_no_finding(another: Database, name: str) -> None:
    value = {"pool": False, "isolation_level": 2, "server_side_binding": True, "assume_role": None}[name]
    assert connect_arguments(another({name: value})).unknown == []


def test_what_cannot_be_mapped_is_named(another: Database) -> None:
    found = connect_arguments(another({"keepalives_idle": 30, "load_balance_hosts": "random"}))
    assert found.unknown == ["keepalives_idle", "load_balance_hosts"]
    assert not found.shared.keys() & set(found.unknown)


async def test_a_connection_has_what_was_asked_for(database: str, another: Database) -> None:
    admin = await connect("default", timeout=5, statement_cache_size=100)
    try:
        await admin.execute("CREATE ROLE aiotasks_reader; GRANT aiotasks_reader TO CURRENT_USER")
        options = {
            "assume_role": "aiotasks_reader",
            "options": '-c statement_timeout=1234 -c search_path="Mixed",public',
            "application_name": "site",
            "sslmode": "prefer",
            "target_session_attrs": "read-write",
            "connect_timeout": 4,
        }
        # The first host refuses.
        port = connections.settings["default"]["PORT"]
        alias = another(options, HOST="127.0.0.1,127.0.0.1", PORT=f"1,{port}")
        connection = await connect(alias, timeout=5, statement_cache_size=100)
        try:
            names = ("role", "statement_timeout", "search_path", "application_name")
            shown = [await connection.fetchval(f"SHOW {name}") for name in names]
        finally:
            await connection.close()
        assert shown == ["aiotasks_reader", "1234ms", '"Mixed",public', "site"]
    finally:
        await admin.execute("DROP ROLE aiotasks_reader")
        await admin.close()


@pytest.mark.parametrize(
    "settings", [{"PORT": "1"}, {"NAME": "no_such_database"}, {"USER": "no_such_role"}], ids=str
)
async def test_failures_are_djangos(database: str, another: Database, settings: dict[str, str]) -> None:
    with pytest.raises(utils.OperationalError) as caught:
        await connect(another(**settings), timeout=5, statement_cache_size=100)
    assert caught.value.__cause__ is not None


async def test_a_host_that_is_silent_holds_nobody_up(proxy: Proxy, another: Database) -> None:
    """24: a primary that has vanished, before the one that took over; asyncpg would wait for it alone."""
    port = proxy.target[1]
    proxy.mode = "blackhole"
    alias = another(
        {"target_session_attrs": "read-write"}, HOST="127.0.0.1,127.0.0.1", PORT=f"{proxy.port},{port}"
    )
    for _ in range(2):
        async with asyncio.timeout(5):
            connection = await connect(alias, timeout=60, statement_cache_size=100)
        assert await connection.fetchval("SELECT inet_server_port()") == port
        await connection.close()


async def test_hosts_of_the_environment_are_no_different(
    proxy: Proxy, another: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = proxy.target[1]
    proxy.mode = "blackhole"
    monkeypatch.setenv("PGHOST", "127.0.0.1,127.0.0.1")
    monkeypatch.setenv("PGPORT", f"{proxy.port},{port}")
    async with asyncio.timeout(5):
        connection = await connect(another(HOST="", PORT=""), timeout=60, statement_cache_size=100)
    assert await connection.fetchval("SELECT inet_server_port()") == port
    await connection.close()


async def test_a_cancelled_caller_leaves_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """At whatever turn it is cancelled, while the host that was slower still ends."""

    class Connection:
        open = False

        def terminate(self) -> None:
            self.open = False

    async def connecting(host: dict[str, Any]) -> Connection:
        if host["host"] == "silent":
            try:
                await asyncio.sleep(3600)
            finally:
                for _ in range(3):
                    await asyncio.sleep(0)
        connection.open = True
        return connection

    monkeypatch.setattr(connect_module, "HOST_DELAY", 0)
    for turns in range(12):
        connection = Connection()
        first = asyncio.ensure_future(
            connect_module._first(connecting, [{"host": "silent"}, {"host": "good"}])
        )
        for _ in range(turns):
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        await until(lambda first=first: len(asyncio.all_tasks()) == 1)
        assert connection.open != first.cancelled()


async def test_what_is_said_of_several_hosts(proxy: Proxy, another: Database) -> None:
    """Whether nobody can write: only where every host has said so."""
    port = proxy.target[1]

    async def error_of(ports: str, **settings: str) -> utils.Error:
        alias = another(
            {"target_session_attrs": "read-write"}, HOST="127.0.0.1,127.0.0.1", PORT=ports, **settings
        )
        with pytest.raises(utils.OperationalError) as caught:
            await connect(alias, timeout=0.5, statement_cache_size=100)
        return caught.value

    assert is_away(await error_of("1,2"))
    proxy.mode = "blackhole"
    assert not is_away(await error_of(f"1,{proxy.port}"))
    assert sqlstate(await error_of(f"1,{port}", USER="no_such_role")) == "28000"


async def test_read_only_servers_are_nobodys_choice(another: Database, conn: asyncpg.Connection) -> None:
    """24: a standby, or a primary that was fenced off."""
    alias = another({"target_session_attrs": "read-write", "options": "-c default_transaction_read_only=on"})
    with pytest.raises(utils.OperationalError) as caught:
        await connect(alias, timeout=5, statement_cache_size=100)
    assert is_away(caught.value)
    assert is_transient(caught.value)
