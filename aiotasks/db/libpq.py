"""A connection's parameters as libpq reads them: the settings', a service file's, the environment's.

Django connects through libpq. asyncpg reads service files, password files and certificates in ways that
differ from libpq's, and leaves out parameters that ask for safety. So this module reads them, and asyncpg is
given the outcome.
https://www.postgresql.org/docs/current/libpq-connect.html
"""

import getpass
import os
import re
import ssl
import stat
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = [
    "is_without_files",
    "not_kept",
    "password",
    "resolve",
    "servers",
    "ssl_context",
    "ssl_mode",
    "unknown",
    "user_name",
]

# https://www.postgresql.org/docs/current/libpq-envars.html
_ENVIRONMENT = {
    "PGHOST": "host",
    "PGHOSTADDR": "hostaddr",
    "PGPORT": "port",
    "PGDATABASE": "dbname",
    "PGUSER": "user",
    "PGPASSWORD": "password",
    "PGPASSFILE": "passfile",
    "PGREQUIREAUTH": "require_auth",
    "PGCHANNELBINDING": "channel_binding",
    "PGOPTIONS": "options",
    "PGAPPNAME": "application_name",
    "PGSSLMODE": "sslmode",
    "PGSSLNEGOTIATION": "sslnegotiation",
    "PGSSLCERT": "sslcert",
    "PGSSLKEY": "sslkey",
    "PGSSLCERTMODE": "sslcertmode",
    "PGSSLROOTCERT": "sslrootcert",
    "PGSSLCRL": "sslcrl",
    "PGSSLCRLDIR": "sslcrldir",
    "PGSSLMINPROTOCOLVERSION": "ssl_min_protocol_version",
    "PGSSLMAXPROTOCOLVERSION": "ssl_max_protocol_version",
    "PGREQUIREPEER": "requirepeer",
    "PGGSSENCMODE": "gssencmode",
    "PGKRBSRVNAME": "krbsrvname",
    "PGGSSLIB": "gsslib",
    "PGCONNECT_TIMEOUT": "connect_timeout",
    "PGTARGETSESSIONATTRS": "target_session_attrs",
    "PGLOADBALANCEHOSTS": "load_balance_hosts",
    "PGMINPROTOCOLVERSION": "min_protocol_version",
}

_USED = frozenset(_ENVIRONMENT.values()) - {"load_balance_hosts"} | {"service", "servicefile", "sslpassword"}
# For Django and psycopg alone, or without effect on asyncpg.
_IGNORED = frozenset(
    {
        *("client_encoding", "cursor_factory", "row_factory", "context", "prepare_threshold", "autocommit"),
        *("fallback_application_name", "max_protocol_version", "sslcompression", "sslsni"),
    }
)

_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

# The folders of a local server's socket, if no host is given; a password file calls such a host "localhost".
_SOCKET_FOLDERS = ("/run/postgresql", "/var/run/postgresql", "/tmp")

_PROVE_OTHERWISE = (
    "Have the server prove itself by its certificate instead: sslmode=verify-full, with sslrootcert=system "
    "or a file in sslrootcert."
)


def resolve(given: Mapping[str, Any]) -> dict[str, str]:
    """All parameters of a connection, by libpq's names; an empty one counts as not given.

    ``given`` are the arguments that Django's engine passes to psycopg. Others come from the service (the
    parameter ``service`` or PGSERVICE), and then from the environment. Raises ValueError if the service isn't
    defined.
    """
    found = {name: str(value) for name, value in given.items() if value is not None and name not in _IGNORED}
    if service := found.get("service") or os.environ.get("PGSERVICE"):
        found = _service(service, found.get("servicefile")) | found
    environment = {name: os.environ[key] for key, name in _ENVIRONMENT.items() if key in os.environ}
    if os.environ.get("PGREQUIRESSL", "").startswith("1"):  # deprecated, and still obeyed
        environment.setdefault("sslmode", "require")
    return {name: value for name, value in (environment | found).items() if value}


def unknown(parameters: Mapping[str, str]) -> list[str]:
    """The names of parameters that aiotasks doesn't use, and that are no danger to leave out."""
    return sorted(parameters.keys() - _USED - {"conninfo", "dsn"})


def not_kept(parameters: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """The demands for safety that asyncpg doesn't support, each with its name, its text and a remedy."""
    demands = {
        "channel_binding": (parameters.get("channel_binding") == "require", _PROVE_OTHERWISE),
        "require_auth": (True, _PROVE_OTHERWISE),
        "gssencmode": (
            parameters.get("gssencmode") == "require",
            "Encrypt by SSL instead: sslmode=verify-full.",
        ),
        "sslcertmode": (parameters.get("sslcertmode") == "require", _PROVE_OTHERWISE),
        "requirepeer": (True, f"Leave it out, or connect by TCP. {_PROVE_OTHERWISE}"),
        "min_protocol_version": (
            parameters.get("min_protocol_version") != "3.0",
            "Leave it out: asyncpg uses version 3.0.",
        ),
        "hostaddr": (
            ssl_mode(parameters) == "verify-full" and "host" in parameters,
            "Leave it out: with sslmode=verify-full the certificate's name is compared with HOST.",
        ),
        # They may hold any parameter, sslmode too.
        "conninfo": (True, "Write its parameters one by one in OPTIONS."),
        "dsn": (True, "Write its parameters one by one in OPTIONS."),
    }
    return [
        (name, name if name in ("conninfo", "dsn") else f"{name}={parameters[name]}", remedy)
        for name, (demanded, remedy) in demands.items()
        if demanded and name in parameters
    ]


def servers(parameters: Mapping[str, str]) -> list[tuple[str | None, int]]:
    """The servers to try, in their order: host (None: on this machine) and port."""
    names = parameters.get("hostaddr", parameters.get("host", "")).split(",")
    ports = parameters.get("port", "5432").split(",")
    if len(ports) == 1:
        ports *= len(names)
    if len(ports) != len(names):
        raise ValueError(f"{len(ports)} ports are given for {len(names)} hosts")
    return [(name or None, int(port or 5432)) for name, port in zip(names, ports, strict=True)]


# --- Service files ------------------------------------------------------------------------------


def _service(name: str, file: str | None) -> dict[str, str]:
    """The parameters of a service, from the user's file or else the system's."""
    folders = [os.environ.get("PGSYSCONFDIR"), "/etc/postgresql-common", "/etc"]
    own = file or os.environ.get("PGSERVICEFILE") or _at_home(".pg_service.conf")
    files = [Path(own)] if own else []
    files += [Path(folder, "pg_service.conf") for folder in folders if folder]
    for path in files:
        try:
            text = path.read_text("utf-8")
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        if (found := _section(name, text, path)) is not None:
            return found
    raise ValueError(f"the service {name!r} isn't defined in {', '.join(map(str, files))}")


def _section(name: str, text: str, path: Path) -> dict[str, str] | None:
    """A section of a service file: ``key=value``, without quotes or spaces around ``=``."""
    found: dict[str, str] | None = None
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            if found is not None:
                break
            if line.startswith(f"[{name}]"):
                found = {}
        elif found is not None:
            key, separator, value = line.partition("=")
            if not separator or key in ("service", "servicefile") or not re.fullmatch(r"\w+", key):
                raise ValueError(f"{path}, line {number}, isn't a parameter as key=value")
            found.setdefault(key, value)
    return found


# --- Password files -----------------------------------------------------------------------------


def password(parameters: Mapping[str, str], host: str | None, port: int, *, user: str, database: str) -> str:
    """The password for one of the hosts; empty where there is none."""
    if given := parameters.get("password"):
        return given
    file = parameters.get("passfile") or _at_home(".pgpass")
    wanted = ("localhost" if host is None or host in _SOCKET_FOLDERS else host, str(port), database, user)
    for line in _password_lines(file) if file else ():
        rest: str | None = line
        for value in wanted:
            rest = None if rest is None else _after(value, rest)
        if rest is not None:
            # The password ends at a colon, too; a backslash escapes a colon or a backslash.
            (found,) = re.findall(r"^(?:[^:\\]|\\.|\\$)*", rest)
            return re.sub(r"\\(.)", r"\1", found)
    return ""


def _after(value: str, line: str) -> str | None:
    """The rest of a line after its first field, if that matches ``value`` (libpq's pwdfMatchesString)."""
    if line.startswith("*:"):
        return line[2:]
    position = 0
    for character in value:
        position += line.startswith("\\", position)
        if not line.startswith(character, position):
            return None
        position += 1
    return line[position + 1 :] if line.startswith(":", position) else None


def _password_lines(file: str) -> list[str]:
    try:
        mode = os.stat(file).st_mode
        if not stat.S_ISREG(mode) or (os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO)):
            warnings.warn(
                f"The password file {file} is ignored, as by libpq: it must be a plain file that no other "
                "user can access (chmod 0600).",
                stacklevel=2,
            )
            return []
        text = Path(file).read_bytes().decode("utf-8", "surrogateescape")
    except OSError:
        return []
    return [line.rstrip("\r") for line in text.split("\n") if not line.startswith("#")]


# --- SSL ----------------------------------------------------------------------------------------


def ssl_mode(parameters: Mapping[str, str]) -> str:
    """The ``sslmode``. Raises ValueError if it doesn't exist, or is too weak for the other parameters."""
    strict = parameters.get("sslrootcert") == "system"
    mode = parameters.get("sslmode") or ("verify-full" if strict else "prefer")
    if mode not in _SSL_MODES:
        raise ValueError(f"sslmode must be one of {', '.join(_SSL_MODES)}, not {mode!r}")
    if strict and mode != "verify-full":
        raise ValueError(f"sslmode={mode} is too weak for sslrootcert=system, which requires verify-full")
    negotiation = parameters.get("sslnegotiation", "postgres")
    if negotiation not in ("postgres", "direct"):
        raise ValueError(f"sslnegotiation must be postgres or direct, not {negotiation!r}")
    if negotiation == "direct" and mode in ("disable", "allow", "prefer"):
        raise ValueError(f"sslmode={mode} is too weak for sslnegotiation=direct, which requires require")
    return mode


def is_without_files(parameters: Mapping[str, str]) -> bool:
    """Whether SSL has no configuration but the mode: neither a parameter nor a file in a readable home."""
    if any(name.startswith("ssl") for name in parameters.keys() - {"sslmode"}):
        return False
    for name in ("root.crt", "postgresql.crt", "postgresql.key"):
        if (file := _at_home(f".postgresql/{name}")) is not None:
            try:
                os.stat(file)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError:  # not readable: asyncpg would fail on it
                return False
            return False
    return True


def ssl_context(parameters: Mapping[str, str]) -> ssl.SSLContext | None:
    """The context that verifies the server and holds the client's certificate; None for ``sslmode=disable``.

    Raises OSError, ValueError or ssl.SSLError for files that can't be used.
    """
    mode = ssl_mode(parameters)
    if mode == "disable":
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = mode == "verify-full"
    context.set_alpn_protocols(["postgresql"])
    context.minimum_version = _tls_version(parameters.get("ssl_min_protocol_version", "TLSv1.2"))
    if latest := parameters.get("ssl_max_protocol_version"):
        context.maximum_version = _tls_version(latest)
    if _load_roots(context, parameters.get("sslrootcert"), must=mode.startswith("verify")):
        _load_revocations(context, parameters)
    else:
        context.verify_mode = ssl.CERT_NONE
    if parameters.get("sslcertmode") != "disable":
        _load_own(context, parameters)
    return context


def _load_roots(context: ssl.SSLContext, given: str | None, *, must: bool) -> bool:
    """Load the root certificates. Returns whether the server's certificate can be verified, in any mode."""
    if given == "system":
        context.set_default_verify_paths()
        return True
    file = given or _at_home(".postgresql/root.crt")
    if not file or not _is_there(file):
        if must:
            raise ValueError(
                f"the root certificate {file or '~/.postgresql/root.crt'} doesn't exist or can't be read: "
                "name its file in sslrootcert, or write sslrootcert=system"
            )
        return False
    with _naming(file):
        context.load_verify_locations(cafile=file)
    return True


def _load_revocations(context: ssl.SSLContext, parameters: Mapping[str, str]) -> None:
    file, folder = parameters.get("sslcrl"), parameters.get("sslcrldir")
    if not file and not folder and (usual := _at_home(".postgresql/root.crl")) and _is_there(usual):
        file = usual
    if file or folder:
        with _naming(file or folder):
            context.load_verify_locations(cafile=file, capath=folder)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN


def _load_own(context: ssl.SSLContext, parameters: Mapping[str, str]) -> None:
    """Load the client's certificate, if there is one; the server requests it or doesn't."""
    certificate = parameters.get("sslcert") or _at_home(".postgresql/postgresql.crt")
    if not certificate or not _is_there(certificate):
        return
    key = parameters.get("sslkey") or _at_home(".postgresql/postgresql.key")
    with _naming(certificate):
        context.load_cert_chain(
            certificate,
            keyfile=key if key and ("sslkey" in parameters or _is_there(key)) else None,
            password=lambda: parameters.get("sslpassword", ""),
        )


@contextmanager
def _naming(file: str | None) -> Iterator[None]:
    """Name the file in errors, because OpenSSL doesn't."""
    try:
        yield
    except OSError as error:  # ssl.SSLError is one
        raise ValueError(f"{file} can't be used for SSL: {error}") from error


def _tls_version(name: str) -> ssl.TLSVersion:
    try:
        return ssl.TLSVersion[name.replace(".", "_")]
    except KeyError:
        raise ValueError(f"there is no TLS version {name!r}") from None


def _is_there(file: str) -> bool:
    """Whether a file can be read."""
    try:
        open(file, "rb").close()
    except OSError:
        return False
    return True


def user_name() -> str:
    """The name of the operating system's user, which is the role's name if none is given."""
    try:
        import pwd

        return pwd.getpwuid(os.geteuid()).pw_name
    except (ImportError, KeyError):  # not on POSIX; a user without an entry
        return getpass.getuser()


def _at_home(name: str) -> str | None:
    home = os.environ.get("HOME")
    if not home:
        try:
            import pwd

            home = pwd.getpwuid(os.geteuid()).pw_dir
        except (ImportError, KeyError):
            return None
    return os.path.join(home, name)
