"""A primary and a streaming standby, both killed and promoted at will."""

import time
from types import TracebackType
from typing import Any, Self

import psutil
import psycopg

from aiotasks.demo.postgres import PostgresServer
from tests.conftest import BIN_DIR
from tests.faults.away import migrate
from tests.worker.harness import wait_until


class Pair:
    """``with Pair(synchronous=True) as pair: pair.kill_primary(); pair.promote()``, with our tables."""

    host = "127.0.0.1,127.0.0.1"

    def __init__(self, *, synchronous: bool) -> None:
        self.primary = PostgresServer(bin_dir=BIN_DIR)
        self.standby = PostgresServer(bin_dir=BIN_DIR)
        self._synchronous = synchronous

    def __enter__(self) -> Self:
        self.primary.__enter__()
        try:
            migrate(self.primary)
            source = f"host={self.primary.host} port={self.primary.port} user={self.primary.user}"
            self.standby.run(
                "pg_basebackup",
                f"--dbname={source} application_name=standby",
                *("--pgdata=data", "--checkpoint=fast", "--no-sync", "--write-recovery-conf"),
            )
            self.standby.__enter__()
            if self._synchronous:
                self.rows(self.primary, "ALTER SYSTEM SET synchronous_standby_names = 'standby'")
                self.rows(self.primary, "SELECT pg_reload_conf()")
            state = "sync" if self._synchronous else "async"
            wait_until(
                lambda: self.rows(self.primary, "SELECT sync_state FROM pg_stat_replication") == [(state,)]
            )
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.standby.__exit__(None, None, None)
        self.primary.__exit__(None, None, None)

    @property
    def port(self) -> str:
        """Both, for DATABASES."""
        return f"{self.primary.port},{self.standby.port}"

    @staticmethod
    def rows(server: PostgresServer, query: str, *args: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            cursor = connection.execute(query, args)
            return cursor.fetchall() if cursor.description else []

    def kill_primary(self) -> float:
        """SIGKILL for all of its processes; returns when."""
        ((postmaster,),) = self.rows(
            self.primary, "SELECT (regexp_match(pg_read_file('postmaster.pid'), '^[0-9]+'))[1]::int"
        )
        main = psutil.Process(postmaster)
        main.suspend()  # so that it starts no more of them, which would live on
        children = main.children(recursive=True)
        for process in [main, *children]:
            process.kill()
        psutil.wait_procs(children)
        return time.monotonic()

    def promote(self) -> float:
        """Make the standby the primary; returns when it was one."""
        assert self.rows(self.standby, "SELECT pg_promote()") == [(True,)]
        return time.monotonic()
