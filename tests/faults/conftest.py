from collections.abc import Iterator

import psycopg
import pytest

from aiotasks.demo.postgres import PostgresServer
from tests.conftest import BIN_DIR
from tests.faults.away import migrate
from tests.worker.harness import LEDGER, configure, ledger, start, start_worker

__all__ = ["configure", "ledger", "start", "start_worker"]


@pytest.fixture(scope="module")
def own_server() -> Iterator[PostgresServer]:
    """A server that tests may stop and restart. With fsync: what is committed outlasts that."""
    with PostgresServer(bin_dir=BIN_DIR) as server:
        migrate(server)
        with psycopg.connect(server.dsn(), autocommit=True) as connection:
            connection.execute(LEDGER)
        yield server
