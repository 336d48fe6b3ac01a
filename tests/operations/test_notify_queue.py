"""``check`` on a queue of NOTIFY that somebody holds up."""

from collections.abc import Iterator

import psycopg
import pytest
from django.db import connection

from aiotasks.demo.postgres import PostgresServer
from tests.conftest import BIN_DIR

from .conftest import check
from .test_check import params


@pytest.fixture
def small(pg: PostgresServer, database: str) -> Iterator[PostgresServer]:
    """A server with a queue of half a megabyte."""
    with psycopg.connect(pg.dsn()) as observer:
        if observer.info.server_version < 170000:
            pytest.skip("its queue takes 8 GB")
    with PostgresServer(bin_dir=BIN_DIR, settings={"fsync": "off", "max_notify_queue_pages": "64"}) as server:
        yield server


def test_who_holds_it_up_is_named(small: PostgresServer) -> None:
    here = {"HOST": small.host, "PORT": str(small.port), "USER": small.user, "NAME": "postgres"}
    with (
        psycopg.connect(small.dsn(), application_name="sleepy") as holder,
        psycopg.connect(small.dsn(), autocommit=True) as other,
        params(**here),
    ):
        assert check()[1]["notify"]["verdict"] == "ok"
        holder.execute("LISTEN something")
        holder.commit()
        holder.execute("SELECT 1")  # and waits in its transaction
        for n in range(45):
            other.execute("SELECT pg_notify('something', %s)", [f"{n}".ljust(7_900)])
        finding = check()[1]["notify"]
        assert finding["verdict"] == "warning"
        assert (
            f"process {holder.info.backend_pid} (postgres sleepy idle in transaction)" in finding["message"]
        )
        assert f"pg_terminate_backend({holder.info.backend_pid})" in finding["remedy"]
        holder.commit()
        for n in range(5):  # the next notifications clear the queue up
            other.execute("SELECT pg_notify('something', %s)", [f"{n}".ljust(7_900)])
            holder.execute("SELECT 1")
            holder.commit()
        assert check()[1]["notify"]["verdict"] == "ok"
    connection.close()
