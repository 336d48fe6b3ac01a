"""PgBouncer in transaction mode in front of a server, as an unprivileged user on a loopback port."""

import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiotasks.demo.postgres import free_port, unprivileged_user

CONFIGURATION = """
[databases]
* = host={host} port={server_port} {credentials}

[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
max_client_conn = 500
default_pool_size = 10
; as short as they go, so that tests needn't wait
server_login_retry = 1
query_wait_timeout = {query_wait_timeout}
"""


def program() -> str | None:
    """Where PgBouncer is: Debian has it where only root looks."""
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")


class PgBouncer:
    """``with PgBouncer(server) as bouncer: connect(port=bouncer.port)``; any database, any user.

    The port stays the same over restarts.
    """

    host = "127.0.0.1"

    def __init__(self, server: Any, *, query_wait_timeout: int = 5) -> None:
        self.port = free_port()
        self._server = server
        self._query_wait_timeout = query_wait_timeout
        self._user = unprivileged_user()
        self._process: subprocess.Popen[bytes] | None = None
        self._directory = Path(tempfile.mkdtemp(prefix="aiotasks-pgbouncer-"))

    def __enter__(self) -> Self:
        password = getattr(self._server, "password", "")
        configuration = CONFIGURATION.format(
            host=self._server.host,
            server_port=self._server.port,
            credentials=f"user={self._server.user}" + (f" password='{password}'" if password else ""),
            port=self.port,
            query_wait_timeout=self._query_wait_timeout,
        )
        (self._directory / "pgbouncer.ini").write_text(configuration)
        self._directory.chmod(0o755)
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()
        shutil.rmtree(self._directory)

    @property
    def log(self) -> str:
        return (self._directory / "log").read_text()

    def start(self) -> None:
        """Start it, and return once it accepts connections."""
        found = program()
        if found is None:
            raise FileNotFoundError("pgbouncer isn't installed (.ci/run installs it)")
        credentials: dict[str, Any] = {}
        if self._user is not None:  # it refuses to run as root
            credentials = {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [found, self._directory / "pgbouncer.ini"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                **credentials,
            )
        deadline = time.monotonic() + 30
        while True:
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            with socket.socket() as probe:
                if probe.connect_ex((self.host, self.port)) == 0:
                    return
            time.sleep(0.01)

    def kill(self) -> None:
        """As kill -9 does: every client is cut off, and every server session."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
