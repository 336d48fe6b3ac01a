"""The paths of ``--health-port``: for one worker, or all of a supervisor's processes."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Any

from ..health import LIVE_WITHIN
from .http import Answer, Request, Response
from .scrape import Scrape, metrics_route

__all__ = ["ProcessHealth", "are_live", "routes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessHealth:
    """One worker's process.

    process: its slot in the supervisor.
    turned: the seconds since its event loop last ran.
    reasons: why it isn't ready; empty if it is.
    status: what it does, in one line.
    """

    process: str
    pid: int
    turned: float
    ready: bool
    reasons: Sequence[str]
    status: str

    @property
    def live(self) -> bool:
        """Whether its event loop has run within LIVE_WITHIN."""
        return self.turned <= LIVE_WITHIN


type Processes = Callable[[], Awaitable[Sequence[ProcessHealth]]]


def are_live(processes: Sequence[ProcessHealth]) -> bool:
    """Return whether an event loop runs; True where there is no process, because one is about to be started.

    One of several that hangs ends itself, and is replaced; a restart would end the others, too.
    """
    return not processes or any(process.live for process in processes)


def routes(processes: Processes, scrape: Scrape) -> Mapping[str, Answer]:
    """Return the paths with their functions; ``processes`` returns how the processes are, ``scrape`` what
    they have counted.
    """

    async def livez(request: Request) -> Response:
        found = await processes()
        return _response(request, "live", are_live(found), found)

    async def readyz(request: Request) -> Response:
        found = await processes()
        return _response(request, "ready", any(process.ready for process in found), found)

    return {"/livez": livez, "/readyz": readyz, "/metrics": metrics_route(scrape)}


def _response(request: Request, word: str, good: bool, processes: Sequence[ProcessHealth]) -> Response:
    status = HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE
    if request.query == "json":
        value: dict[str, Any] = {
            word: good,
            "processes": [{**asdict(process), "live": process.live} for process in processes],
        }
        return Response(status, json.dumps(value).encode(), "application/json")
    lines = [word if good else f"not {word}", *map(_line, processes)]
    return Response(status, "".join(f"{line}\n" for line in lines).encode())


def _line(process: ProcessHealth) -> str:
    return (
        f"process {process.process} pid {process.pid}: {'ready' if process.ready else 'not ready'}, "
        f"its loop ran {process.turned:.1f} s ago, {process.status}"
    )
