"""Make a site with millions of tasks.

``python -m benchmarks.big_site [--rows N] [--directory DIR] [--keep]``. With --keep the server stays until it
is interrupted, and the environment is printed with which ``python -m django`` commands work on it.
"""

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import asyncpg

from aiotasks.demo.postgres import PostgresServer

from ..contenders.site import set_up

__all__: list[str] = []

ROWS = 5_000_000

# A database whose tables hold less than memory has. Nothing survives a crash of the machine, nor has to.
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "16GB",
    "maintenance_work_mem": "1GB",
    "shared_buffers": "1GB",
    "shared_preload_libraries": "pg_stat_statements",
}


def main() -> int:
    """Do what the command line says; returns the exit code."""
    signal.signal(signal.SIGTERM, lambda *args: sys.exit(143))  # not without ending what has been started
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.big_site",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=int, default=ROWS, metavar="N", help=f"({ROWS:,})")
    parser.add_argument(
        "--directory",
        type=Path,
        metavar="DIR",
        help="keep the cluster there; one that has rows is used again",
    )
    parser.add_argument("--keep", action="store_true", help="leave the server running until Ctrl-C")
    options = parser.parse_args()
    with PostgresServer(settings=SETTINGS, directory=options.directory) as server:
        os.environ["AIOTASKS_BENCH_DSN"] = server.dsn()
        subprocess.run([sys.executable, "-m", "benchmarks.contenders", "aiotasks", "prepare"], check=True)
        set_up()
        asyncio.run(_prepare(server, options.rows))
        print(
            f"export AIOTASKS_BENCH_DSN={server.dsn()} DJANGO_SETTINGS_MODULE=benchmarks.settings", flush=True
        )
        if options.keep:
            try:
                signal.pause()
            except KeyboardInterrupt:
                return 0
    return 0


async def _prepare(server: PostgresServer, rows: int) -> None:
    from .fill import fill

    connection = await asyncpg.connect(server.dsn())
    try:
        await connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        if not await connection.fetchval("SELECT EXISTS (SELECT FROM aiotasks_task)"):
            began = time.monotonic()
            await fill(connection, rows)
            print(f"{rows:,} rows in {time.monotonic() - began:.0f} s", flush=True)
        size = await connection.fetchval("SELECT pg_size_pretty(pg_total_relation_size('aiotasks_task'))")
        for status, number in await connection.fetch(
            "SELECT status, count(*) FROM aiotasks_task GROUP BY status ORDER BY 2 DESC"
        ):
            print(f"{number:12,} {status}")
        print(f"The table and its indexes take {size}.", flush=True)
    finally:
        await connection.close()


if __name__ == "__main__":
    sys.exit(main())
