"""The examination of one backend: its connection, and what earlier checks have found out for later ones."""

from typing import Literal

from django.core.exceptions import ImproperlyConfigured
from django.db import utils
from django.tasks import task_backends
from django.tasks.exceptions import InvalidTaskBackend

from ...backend import PostgresBackend
from ...conf import Options
from ...db.errors import Code, sqlstate
from ...store.inspection import LiveWorkers, Server
from ...store.store import Store
from ..connection import OperatorConnection
from ..status import WorkerRow

__all__ = ["GRACE", "Examination", "Pooler", "options_of", "remedy_for"]

# Seconds for which the stop of a worker waits, if its command line doesn't say otherwise.
GRACE = 25.0

type Pooler = Literal["none", "session", "transaction"]


class Examination:
    """What the checks of one backend share.

    The check ``database`` sets ``server``, ``pooler`` sets ``pooler``, ``migrations`` sets ``workers``, those
    of the backend, and ``fleet``, the live ones of all backends that share the database (each None: this
    role can't read them).
    """

    server: Server

    def __init__(
        self, backend: PostgresBackend, connection: OperatorConnection, *, grace: float = GRACE
    ) -> None:
        self.alias = backend.alias
        self.options = backend.config
        self.database = backend.config.database
        self.timeout = backend.config.command_timeout
        self.connection = connection
        self.grace = grace  # of the workers, in seconds: their rows don't show it
        self.store = Store(connection)
        self.pooler: Pooler = "none"
        self.workers: list[WorkerRow] | None = None
        self.fleet: list[LiveWorkers] | None = None

    def live_workers(self) -> list[WorkerRow]:
        """Return the backend's workers whose leases are live; none where they can't be read."""
        return [worker for worker in self.workers or () if worker.alive]


def options_of(alias: str) -> Options | None:
    """Return the options of ``TASKS[alias]``; None if that is no backend of aiotasks, or can't be used."""
    try:
        config = getattr(task_backends[alias], "config", None)
    except (ImproperlyConfigured, InvalidTaskBackend):
        return None
    return config if isinstance(config, Options) else None


def remedy_for(error: utils.Error) -> str:
    """Return what an operator can do about an error of the database."""
    if sqlstate(error) == Code.TOO_MANY_CONNECTIONS:
        return "Raise max_connections, or see in pg_stat_activity who has them all."
    return "The server's log may say more."
