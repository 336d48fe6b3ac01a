"""All runs by name, with their sizes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from . import bulk, database, expiry, inside, network, processes, retries, timeouts, unique
from .limited import limited
from .pausing import pausing

__all__ = ["RUNS", "Run"]


@dataclass(frozen=True)
class Run:
    """``function(arena, rng, report, **size)``, with the sizes of the long and of the quick form."""

    name: str
    function: Callable[..., None]
    passes_when: str
    long: Mapping[str, Any]
    quick: Mapping[str, Any]


RUNS = (
    Run(
        "kill",
        processes.kill,
        "0 lost; repeats ≤ in flight at the kills; recovered within lease + sweep + 1 s",
        {"tasks": 20_000, "kills": 40},
        {"tasks": 600, "kills": 3},
    ),
    Run(
        "pause",
        processes.pause,
        "0 lost, 0 overwrites though runs end too late, repeats ≤ taken over, exit 0",
        {"pauses": 30},
        {"pauses": 2},
    ),
    Run(
        "pausing",
        pausing,
        "0 lost, nothing claimed between the commit of a pause and its end",
        {"tasks": 20_000, "pauses": 60},
        {"tasks": 600, "pauses": 3},
    ),
    Run(
        "poison",
        processes.poison,
        "every killer FAILED after 3 crashes, all others succeed",
        {"tasks": 2_000, "killers": 10},
        {"tasks": 100, "killers": 1},
    ),
    Run(
        "sigterm",
        processes.sigterm,
        "exit 0 within grace + 2 s, 0 left RUNNING, no attempt spent",
        {"signals": 200},
        {"signals": 6},
    ),
    Run(
        "restart",
        database.restart,
        "0 lost, no worker exits, four fifths of the full rate again within 5 s",
        {"tasks": 10_000, "restarts": 20},
        {"tasks": 1_200, "restarts": 2},
    ),
    Run(
        "unflushed",
        database.unflushed,
        "claims are lost in the crash, as many runs end too late, 0 overwrites, 0 lost, exit 0",
        {"crashes": 10},
        {"crashes": 1},
    ),
    Run(
        "terminate",
        database.terminate,
        "0 lost, the pool whole again; outages of finishes > a fifth of the cuts",
        {"cuts": 300},
        {"cuts": 20},
    ),
    Run(
        "listener",
        database.listener,
        "latency ≤ poll + 0.5 s; LISTEN back within 15 s",
        {"cuts": 50},
        {"cuts": 5},
    ),
    Run(
        "proxy",
        network.proxy,
        "0 lost, no wedge afterwards, shutdown ≤ grace + 2 s",
        {"episodes": 30},
        {"episodes": 4},
    ),
    Run(
        "retry",
        retries.retry,
        "0 lost, every attempt is a failure, a crash or the success, none beyond max_attempts",
        {"tasks": 20_000, "kills": 20, "restarts": 5},
        {"tasks": 200, "kills": 1, "restarts": 1},
    ),
    Run(
        "bulk",
        bulk.bulk,
        "0 lost, no final state changes but by a retry, every retry that was counted has happened",
        {"tasks": 20_000, "rounds": 20, "kills": 10, "restarts": 5},
        {"tasks": 150, "rounds": 2, "kills": 1, "restarts": 1},
    ),
    Run(
        "timeouts",
        timeouts.timeouts,
        "each ends once, in time or by TaskTimeout; 0 overwrites; a process with stuck threads is replaced",
        {"tasks": 2_000, "stuck": 12, "kills": 10},
        {"tasks": 100, "stuck": 1, "kills": 1},
    ),
    Run(
        "expiry",
        expiry.expiry,
        "0 lost, nothing starts after its expires_at, each ends once: SUCCESSFUL, or by TaskExpired",
        {"tasks": 20_000, "kills": 20, "pauses": 10, "restarts": 5},
        {"tasks": 500, "kills": 1, "pauses": 1, "restarts": 1},
    ),
    Run(
        "blocked",
        inside.blocked,
        "0 repeats, each stall logged with its stack",
        {"blocks": 20},
        {"blocks": 2},
    ),
    Run(
        "hostile",
        inside.hostile,
        "neighbours finish, the worker is alive",
        {"values": 200},
        {"values": 60},
    ),
    Run(
        "cancel",
        inside.cancel,
        "idle connections = pool size, nobody has lost a row",
        {"cancels": 10_000},
        {"cancels": 1_000},
    ),
    Run(
        "unique",
        unique.unique,
        "never two unfinished of a key; what was acknowledged succeeds",
        {"keys": 5_000, "times": 3, "kills": 20},
        {"keys": 50, "times": 2, "kills": 2},
    ),
    Run(
        "limited",
        limited,
        "0 lost, no key above its limit, lines in order; a key free again within lease + sweep + 1 s",
        {"tasks": 6_000, "kills": 20},
        {"tasks": 400, "kills": 2},
    ),
    Run(
        "soak",
        inside.soak,
        "RSS + < 5 % after warm-up, backends constant",
        {"tasks": 1_000_000},
        {"tasks": 20_000},
    ),
)
