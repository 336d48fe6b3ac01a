"""aiotasks, with its default options unless a workload says otherwise."""

from functools import partial
from importlib import metadata

import aiotasks

from ..site import migrate
from . import depth, drains, enqueues, fairness, joins, limits, memory, names, snapshot, waits

__all__ = ["REQUIRES", "STAGES", "WORKLOADS", "prepare", "versions"]

REQUIRES = ["asyncpg", "Django", "psutil", "psycopg", "uvloop"]


def versions() -> dict[str, str]:
    measured = {name: metadata.version(name) for name in ("Django", "asyncpg", "psycopg", "uvloop")}
    return {"aiotasks": aiotasks.__version__, **measured}


prepare = migrate

STAGES = {"depth": depth.fill}

WORKLOADS = {
    "drain": partial(drains.drain, "noop"),
    "drain-receivers": drains.with_receivers,
    "drain-sync": partial(drains.drain, "sync_noop"),
    "drain-cpu": partial(drains.drain, "cpu"),
    "drain-queries": partial(drains.drain, "queries", options=("--concurrency", "50")),
    "enqueue-50": partial(enqueues.concurrent, callers=50),
    "enqueue-1": partial(enqueues.concurrent, callers=1),
    "enqueue-sync": enqueues.sync,
    "bulk": enqueues.bulk,
    "refresh": enqueues.refresh,
    "latency": waits.latency,
    "scheduled": waits.scheduled,
    "io-200": partial(drains.drain, "sleep", args=(0.1,), options=("--concurrency", "200")),
    "io-10000": partial(drains.drain, "sleep", args=(1.0,), options=("--concurrency", "10000")),
    "threads": partial(drains.drain, "sync_sleep", args=(0.02,), options=("--threads", "20")),
    "depth": depth.drain,
    "depth-empty": depth.drain,
    "snapshot": snapshot.measure,
    "orm": partial(drains.drain, "slow_queries", options=("--concurrency", "50")),
    "orm-one-thread": partial(
        drains.drain,
        "slow_queries",
        options=("--concurrency", "50"),
        settings="benchmarks.settings_one_thread",
    ),
    "sync-orm": partial(drains.drain, "sync_query"),
    "sync-orm-600": partial(drains.drain, "sync_query", settings="benchmarks.settings_kept_connections"),
    "memory": memory.measure,
    "processes": partial(drains.with_processes, 2),
    "processes-one": partial(drains.with_processes, 1),
    "fairness": fairness.measure,
    "names-drain": partial(names.drain, 10_000),
    "names-trickle": partial(names.trickle, 10_000),
    "names-drain-1": partial(names.drain, 1),
    "names-trickle-1": partial(names.trickle, 1),
    "join": joins.measure,
    "join-10000": partial(joins.drain, awaited=True),
    "join-none": partial(joins.drain, awaited=False),
    "limits-1": partial(limits.drain, 1),
    "limits-1-plain": partial(drains.drain, "noop", options=("--queue", "default=1")),
    "limits-10": partial(limits.drain, 10),
    "limits-10-plain": partial(drains.drain, "noop", options=("--queue", "default=10")),
    "limits-100": partial(limits.drain, 100),
    "limits-100-plain": partial(drains.drain, "noop", options=("--queue", "default=100")),
    "limits-keys": partial(limits.keys, 1_000),
    "limits-keys-plain": partial(drains.drain, "noop"),
    "limits-fair": partial(limits.fair, 1_000),
    "limits-fair-plain": partial(drains.drain, "noop"),
    "limits-latency": limits.latency,
    "limits-latency-plain": waits.latency,
    "limits-tenant": partial(limits.tenant, limited=True),
    "limits-tenant-plain": partial(limits.tenant, limited=False),
}
