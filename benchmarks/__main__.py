"""``python -m benchmarks [WORKLOAD]… [--scale F]``: one line of figures for each workload.

Times are the table's own: from the first start to the last finish, without the worker's start-up.
Results are kept, signals sent, commits durable. Figures of a shared machine vary: only ratios
within one run compare.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from aiotasks.demo.postgres import PostgresServer

__all__: list[str] = []


@contextmanager
def worker(*arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A worker process; ended by SIGTERM if it hasn't ended by itself."""
    command = [sys.executable, "-m", "aiotasks.worker", *arguments]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield process
        if "--until-empty" in arguments:
            process.wait()
    finally:
        process.terminate()
        process.wait()


def seconds_from_start_to_finish(count: int) -> float:
    """Of the newest ``count`` tasks, which must all have succeeded."""
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT count(*), extract(epoch FROM max(finished_at) - min(started_at))
            FROM (SELECT * FROM aiotasks_task ORDER BY id DESC LIMIT %s) AS newest
            WHERE status = 'SUCCESSFUL'
            """,
            [count],
        )
        done, seconds = cursor.fetchone()
    if done != count:
        raise SystemExit(f"{count - done} of {count} tasks have not succeeded")
    return float(seconds)


async def drain(name: str, count: int, *args: object, options: tuple[str, ...] = ()) -> float:
    """Enqueue, then have one worker run it all."""
    from django.tasks import default_task_backend

    from . import tasks

    await default_task_backend.aenqueue_many(getattr(tasks, name), [(args, {})] * count)
    with worker("--until-empty", *options):
        pass
    return await asyncio.to_thread(seconds_from_start_to_finish, count)


async def no_ops(scale: float) -> str:
    count = int(20_000 * scale)
    return f"{count / await drain('noop', count):,.0f} coroutine tasks/s"


async def sync_no_ops(scale: float) -> str:
    count = int(10_000 * scale)
    return f"{count / await drain('sync_noop', count):,.0f} sync tasks/s"


async def io(scale: float) -> str:
    count = int(2_000 * scale)
    seconds = await drain("sleep", count, 0.1, options=("--concurrency", "200"))
    return f"{count} x 0.1 s, 200 at a time: {seconds:.2f} s of {count * 0.1 / 200:.2f} s"


async def threads(scale: float) -> str:
    count = int(2_000 * scale)
    seconds = await drain("sync_sleep", count, 0.02, options=("--threads", "20"))
    return f"{count} x 0.02 s, 20 threads: {seconds:.2f} s of {count * 0.02 / 20:.2f} s"


async def enqueue(scale: float) -> str:
    """50 concurrent callers, then one."""
    from . import tasks

    async def caller(count: int) -> None:
        for _ in range(count):
            await tasks.noop.aenqueue()

    async def rate(callers: int, each: int) -> float:
        started = time.perf_counter()
        await asyncio.gather(*(caller(each) for _ in range(callers)))
        return callers * each / (time.perf_counter() - started)

    await rate(1, 10)
    many, one = await rate(50, int(200 * scale)), await rate(1, int(1000 * scale))
    return f"{many:,.0f}/s by 50 callers, {one:,.0f}/s by one"


async def latencies(count: int, delay: float) -> list[float]:
    """Milliseconds from the due time to the body, at an idle worker."""
    from django.tasks import default_task_backend
    from django.utils import timezone

    from . import tasks

    found = []
    for _ in range(count):
        due = timezone.now() + timedelta(seconds=delay)
        result = await (tasks.now.using(run_after=due) if delay else tasks.now).aenqueue()
        while not result.is_finished:
            await asyncio.sleep(delay / 4 or 0.005)
            result = await default_task_backend.aget_result(result.id)
        found.append((result.return_value - due.timestamp()) * 1000)
    return sorted(found)


async def latency(scale: float, delay: float = 0.0) -> str:
    count = max(10, int(200 * scale))
    with worker():
        await latencies(5, delay)  # until the worker is up, and everything is cached
        found = await latencies(count, delay)
    return f"p50 {statistics.median(found):.1f} ms, p99 {found[int(len(found) * 0.99) - 1]:.1f} ms of {count}"


async def scheduled(scale: float) -> str:
    return await latency(scale, 0.3)


WORKLOADS: dict[str, Callable[[float], Awaitable[str]]] = {
    "no-ops": no_ops,
    "sync-no-ops": sync_no_ops,
    "io": io,
    "threads": threads,
    "enqueue": enqueue,
    "latency": latency,
    "scheduled": scheduled,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=f"of {', '.join(WORKLOADS)} (all)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of tasks (1)")
    options = parser.parse_args()
    if unknown := set(options.workloads) - set(WORKLOADS):
        parser.error(f"no workload is called {', '.join(sorted(unknown))}; there are {', '.join(WORKLOADS)}")
    with PostgresServer() as server:
        os.environ |= {
            "DJANGO_SETTINGS_MODULE": "benchmarks.settings",
            "AIOTASKS_BENCH_PORT": str(server.port),
        }
        import django
        from django.core.management import call_command

        django.setup()
        call_command("migrate", verbosity=0)
        for name in options.workloads or WORKLOADS:
            print(f"{name:12} {asyncio.run(measured(name, options.scale))}", flush=True)


async def measured(name: str, scale: float) -> str:
    from aiotasks.store.pools import close_pools

    try:
        return await WORKLOADS[name](scale)
    finally:
        await close_pools()


if __name__ == "__main__":
    main()
