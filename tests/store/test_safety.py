"""Connections are as safe as Django's, and parameters come from where libpq takes them.

Each case is tried by both: what Django refuses, aiotasks refuses.
"""

import os
import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest
from django.db import connections, utils

from aiotasks.checks import check_backend
from aiotasks.db.connect import connect, connect_arguments
from aiotasks.demo.postgres import unprivileged_user
from tests.site import postgres_connection
from tests.tls import TlsServer
from tests.worker.harness import until

from .test_connect import another, no_environment

__all__ = ["another", "no_environment"]

Database = Callable[..., str]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority (root.crt), its server's certificate for localhost, a client's, and a revocation list."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no program openssl to make certificates with")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "rsa:2048", "-nodes", "-keyout")
    for name in ("root", "stranger"):
        openssl("req", "-x509", *key, f"{name}.key", "-out", f"{name}.crt", "-subj", f"/CN={name}")
    for name in ("localhost", "client"):
        openssl("req", *key, f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signer = ("-CA", "root.crt", "-CAkey", "root.key", "-set_serial", "7")
        openssl("x509", "-req", "-in", f"{name}.csr", *signer, "-out", f"{name}.crt")
    (folder / "index").write_text("")
    (folder / "ca.cnf").write_text(
        "[ca]\ndefault_ca = this\n[this]\ndatabase = index\ndefault_md = sha256\ndefault_crl_days = 2\n"
    )
    authority = ("ca", "-config", "ca.cnf", "-cert", "root.crt", "-keyfile", "root.key")
    openssl(*authority, "-revoke", "localhost.crt")
    openssl(*authority, "-gencrl", "-out", "revoked.crl")
    return folder


@pytest.fixture
def tls(database: str, certificates: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TlsServer]:
    """The run's server behind SSL; nobody's home has certificates."""
    monkeypatch.setenv("HOME", "/nowhere")
    here = connections["default"].settings_dict
    with TlsServer(here["HOST"], int(here["PORT"]), certificates) as server:
        yield server


def sockets() -> Any:
    return psutil.Process().net_connections("tcp")


async def both(alias: str, server: TlsServer) -> tuple[bool | None, bool | None, str]:
    """Of Django's connection, and of aiotasks': whether it is encrypted, and None if there is none."""
    wrapper = postgres_connection(alias)
    told = ""
    try:
        wrapper.Database.connect(**wrapper.get_connection_params()).close()
        theirs = server.sessions.pop()
    except psycopg.Error as error:
        theirs, told = None, f"Django: {error} "
    try:
        connection = await connect(alias, timeout=10, statement_cache_size=0)
    except utils.Error as error:
        # A refused handshake's transport closes in later turns of the loop, which must not end before that.
        await until(lambda: not any(at.raddr and at.raddr.port == server.port for at in sockets()))
        return theirs, None, f"{told}aiotasks: {error}"
    await connection.close()
    return theirs, server.sessions.pop(), told


SSL, PLAIN, REFUSED = True, False, None
ONLY_SSL, ONLY_PLAIN, BOTH = {True}, {False}, {True, False}

# OPTIONS, HOST, what the server takes, and what comes of it.
SAFE: dict[str, tuple[dict[str, str], str, set[bool], bool | None]] = {
    "nothing is asked for": ({}, "127.0.0.1", BOTH, SSL),
    "disable": ({"sslmode": "disable"}, "127.0.0.1", BOTH, PLAIN),
    "allow": ({"sslmode": "allow"}, "127.0.0.1", BOTH, PLAIN),
    "allow, and plain text is refused": ({"sslmode": "allow"}, "127.0.0.1", ONLY_SSL, SSL),
    "prefer, and there is no SSL": ({"sslmode": "prefer"}, "127.0.0.1", ONLY_PLAIN, PLAIN),
    "require": ({"sslmode": "require"}, "127.0.0.1", BOTH, SSL),
    "require, and there is no SSL": ({"sslmode": "require"}, "127.0.0.1", ONLY_PLAIN, REFUSED),
    "require, an authority": ({"sslmode": "require", "sslrootcert": "root.crt"}, "127.0.0.1", BOTH, SSL),
    "require, another": ({"sslmode": "require", "sslrootcert": "stranger.crt"}, "127.0.0.1", BOTH, REFUSED),
    "require, no such file": ({"sslmode": "require", "sslrootcert": "none.crt"}, "127.0.0.1", BOTH, SSL),
    "verify-ca": ({"sslmode": "verify-ca", "sslrootcert": "root.crt"}, "127.0.0.1", BOTH, SSL),
    "verify-ca, no authority": ({"sslmode": "verify-ca"}, "127.0.0.1", BOTH, REFUSED),
    "verify-full": ({"sslmode": "verify-full", "sslrootcert": "root.crt"}, "localhost", BOTH, SSL),
    "verify-full, a name that isn't the server's": (
        {"sslmode": "verify-full", "sslrootcert": "root.crt"},
        "127.0.0.1",
        BOTH,
        REFUSED,
    ),
    "revoked": (
        {"sslmode": "verify-ca", "sslrootcert": "root.crt", "sslcrl": "revoked.crl"},
        "127.0.0.1",
        BOTH,
        REFUSED,
    ),
    "too old a protocol": (
        {"sslmode": "require", "ssl_min_protocol_version": "TLSv1.3"},
        "127.0.0.1",
        BOTH,
        REFUSED,
    ),
    "the system's authorities": ({"sslrootcert": "system"}, "localhost", BOTH, REFUSED),
    "the system's, no SSL": ({"sslrootcert": "system"}, "localhost", ONLY_PLAIN, REFUSED),
    "the system's, too weak": ({"sslrootcert": "system", "sslmode": "require"}, "localhost", BOTH, REFUSED),
    "direct": ({"sslnegotiation": "direct", "sslmode": "prefer"}, "127.0.0.1", BOTH, REFUSED),
}


@pytest.mark.parametrize("case", SAFE)
async def test_what_django_refuses_is_refused(
    tls: TlsServer, certificates: Path, another: Database, case: str
) -> None:
    options, host, tls.takes, expected = SAFE[case]
    options = {
        name: os.fspath(certificates / value) if value.endswith((".crt", ".crl")) else value
        for name, value in options.items()
    }
    theirs, ours, told = await both(another(options, HOST=host, PORT=str(tls.port)), tls)
    assert (theirs, ours) == (expected, expected), told


async def test_certificates_and_authorities_of_the_machine(
    tls: TlsServer, certificates: Path, another: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", os.fspath(certificates / "root.crt"))
    here = {"HOST": "localhost", "PORT": str(tls.port)}
    assert await both(another({"sslrootcert": "system"}, **here), tls) == (SSL, SSL, "")

    tls.demands_certificate = True
    options = {
        "sslmode": "require",
        "sslcert": os.fspath(certificates / "client.crt"),
        "sslkey": os.fspath(certificates / "client.key"),
    }
    assert await both(another(options, **here), tls) == (SSL, SSL, "")
    assert (await both(another({**options, "sslcertmode": "disable"}, **here), tls))[:2] == (None, None)
    home = tmp_path / ".postgresql"
    home.mkdir()
    for theirs, ours in {
        "client.crt": "postgresql.crt",
        "client.key": "postgresql.key",
        "root.crt": "root.crt",
    }.items():
        shutil.copy(certificates / theirs, home / ours)
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    assert await both(another({"sslmode": "verify-full"}, **here), tls) == (SSL, SSL, "")
    monkeypatch.setenv("PGSSLCERTMODE", "disable")
    assert (await both(another({"sslmode": "verify-full"}, **here), tls))[:2] == (None, None)


@pytest.mark.parametrize("source", ["OPTIONS", "environment", "service"])
@pytest.mark.parametrize(
    ("name", "value", "variable"),
    [
        ("channel_binding", "require", "PGCHANNELBINDING"),
        ("require_auth", "scram-sha-256", "PGREQUIREAUTH"),
        ("gssencmode", "require", "PGGSSENCMODE"),
        ("sslcertmode", "require", "PGSSLCERTMODE"),
        ("requirepeer", "postgres", "PGREQUIREPEER"),
    ],
)
def test_what_can_not_be_kept_is_refused_and_named(
    another: Database,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    source: str,
    name: str,
    value: str,
    variable: str,
) -> None:
    """Not left out, so that a server needn't prove itself, nor even encrypt."""
    options = {}
    if source == "OPTIONS":
        options = {name: value}
    elif source == "environment":
        monkeypatch.setenv(variable, value)
    else:
        (tmp_path / "services").write_text(f"[site]\n{name}={value}\n")
        monkeypatch.setenv("PGSERVICEFILE", os.fspath(tmp_path / "services"))
        options = {"service": "site"}
    (message,) = check_backend("default", {"OPTIONS": {"DATABASE": another(options)}})
    assert message.id == "aiotasks.E009"
    assert f"asks for {name}={value}" in message.msg
    assert ("in the environment or a service file" in message.msg) == (source != "OPTIONS")
    assert "sslmode=verify-full" in message.msg


async def test_who_connects_all_the_same_is_told(another: Database) -> None:
    with pytest.raises(utils.NotSupportedError, match="channel_binding=require"):
        await connect(another({"channel_binding": "require"}), timeout=5, statement_cache_size=0)
    for name in ("conninfo", "dsn"):
        with pytest.raises(utils.NotSupportedError, match=f"asks for {name}"):
            connect_arguments(another({name: "sslmode=verify-full password=secret"}))
    connect_arguments(another({"channel_binding": "prefer", "gssencmode": "disable"}))


PASSFILE = r"""
# a comment
*:*:short:we:ird:an escape can be left out
*:1:*:we\:ird:another port
elsewhere:*:*:we\:ird:another host
127.0.0.1:5433:d\\b:we\:ird
*:*:d\\b:we\:ird: it's\: a\\b :what is behind a colon
"""


@pytest.mark.parametrize("source", ["OPTIONS", "environment", "home"])
def test_password_files(
    another: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """Escaped colons and backslashes, kept spaces: as libpq finds the password."""
    file = tmp_path / ".pgpass"
    file.write_text(PASSFILE)
    file.chmod(0o600)
    options = {}
    monkeypatch.setenv("HOME", "/nowhere")
    if source == "OPTIONS":
        options = {"passfile": os.fspath(file)}
    elif source == "environment":
        monkeypatch.setenv("PGPASSFILE", os.fspath(file))
    else:
        monkeypatch.setenv("HOME", os.fspath(tmp_path))

    def passwords(**settings: str) -> tuple[str, str]:
        alias = another(
            options, **{"HOST": "127.0.0.1", "PORT": "1", "USER": "we:ird", "PASSWORD": "", **settings}
        )
        params = connections[alias].get_connection_params()
        words = {
            name: params[name] for name in ("host", "port", "user", "dbname", "passfile") if name in params
        }
        trying = psycopg.pq.PGconn.connect_start(psycopg.conninfo.make_conninfo(**words).encode())
        theirs = trying.password.decode()
        trying.finish()
        (server,) = connect_arguments(alias).servers
        return theirs, server["password"]

    assert passwords(NAME="d\\b", PORT="5433") == 2 * (r" it's: a\b ",)
    assert passwords(NAME="short") == 2 * ("an escape can be left out",)
    assert passwords(NAME="other") == 2 * ("another port",)
    assert passwords(NAME="other", PORT="2", HOST="127.0.0.2") == 2 * ("",)
    file.chmod(0o640)
    with pytest.warns(UserWarning, match="chmod 0600"):
        assert passwords(NAME="d\\b") == 2 * ("",)


async def test_service_files(
    database: str, another: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = connections["default"].settings_dict
    (tmp_path / "services").write_text(
        f"[other]\nhost=nowhere.invalid\n\n# mine\n[site]\nhost={here['HOST']}\nport={here['PORT']}\n"
        f"dbname={here['NAME']}\nuser={here['USER']}\npassword={here['PASSWORD']}%(x)s\n"
        "options=-c search_path=app -c work_mem=1MB\n[third]\nhost=nowhere.invalid\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", os.fspath(tmp_path / "services"))
    monkeypatch.setenv("PGUSER", "nobody")  # a service goes before the environment
    nothing = {"HOST": "", "PORT": "", "USER": "", "PASSWORD": "", "NAME": ""}
    query = "SELECT current_user || current_database() || current_setting('search_path')"

    async def who(alias: str) -> str:
        wrapper = postgres_connection(alias)
        with wrapper.Database.connect(**wrapper.get_connection_params()) as django:
            (theirs,) = django.execute(query).fetchone()
        connection = await connect(alias, timeout=5, statement_cache_size=0)
        assert await connection.fetchval(query) == theirs
        await connection.close()
        return str(theirs)

    assert await who(another({"service": "site"}, **nothing)) == f"{here['USER']}{here['NAME']}app"
    assert await who(another({"service": "site", "options": "-c search_path=b"}, **nothing)) == (
        f"{here['USER']}{here['NAME']}b"
    )
    monkeypatch.setenv("PGSERVICE", "site")
    assert await who(another(**{**nothing, "NAME": "postgres"})) == f"{here['USER']}postgresapp"
    with pytest.raises(utils.OperationalError, match="'nosuch' isn't defined in"):
        await connect(another({"service": "nosuch"}, **nothing), timeout=5, statement_cache_size=0)


async def test_the_environment(database: str, another: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    here = connections["default"].settings_dict
    for name in ("HOST", "PORT", "USER", "PASSWORD"):
        monkeypatch.setenv(f"PG{name}", str(here[name]))
    monkeypatch.setenv("PGOPTIONS", r"-c app.note=a\ b")
    monkeypatch.setenv("PGAPPNAME", "by the environment")
    alias = another(HOST="", PORT="", USER="", PASSWORD="")
    connection = await connect(alias, timeout=5, statement_cache_size=0)
    assert await connection.fetchval("SHOW app.note") == "a b"
    assert await connection.fetchval("SHOW application_name") == "by the environment"
    await connection.close()


@contextmanager
def without_rights() -> Iterator[None]:
    """As a user to whom root's files are closed, where the tests run as root."""
    user = unprivileged_user()
    if user is None:
        yield
        return
    os.seteuid(user.pw_uid)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("mode", ["prefer", "require"])
async def test_a_home_that_is_closed_to_us(
    tls: TlsServer, another: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """asyncpg looks for certificates and passwords there."""
    home = tmp_path / "closed"
    (home / ".postgresql").mkdir(parents=True)
    home.chmod(0)
    monkeypatch.setenv("HOME", os.fspath(home))
    alias = another({"sslmode": mode}, PORT=str(tls.port))
    try:
        with without_rights(), warnings.catch_warnings():
            warnings.simplefilter("error")
            connection = await connect(alias, timeout=5, statement_cache_size=0)
        await connection.close()
    finally:
        home.chmod(0o700)
    assert tls.sessions == [SSL]
