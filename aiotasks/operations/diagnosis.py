"""What may be wrong with a backend's set-up, looked for one by one: ``manage.py aiotasks check``."""

from collections import Counter
from collections.abc import Iterable, Mapping
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, utils
from django.db.migrations.loader import MigrationLoader
from django.tasks import task_backends
from django.tasks.exceptions import InvalidTaskBackend
from django.utils.module_loading import import_string

from .. import __version__
from ..backend import PostgresBackend
from ..checks import check_backend
from ..conf import Options
from ..db.connect import connect
from ..db.errors import Code, describe, refuses_login, sqlstate
from ..store.inspection import Server, WaitingLane
from ..store.session import GETS_IN, differences, djangos_session, our_session
from ..store.store import Store
from ..worker.startup import backend_of
from . import indexes, storage, waiting
from .connection import OperatorConnection, operator_connection
from .findings import Finding, Result
from .probes import Pooler, clock_difference, find_pooler, notify_arrives
from .rights import judge, judge_rows
from .status import WorkerRow, select_workers
from .text import age

__all__ = ["CHECKS", "check_settings", "diagnose"]

# In the order in which they are made.
CHECKS = (
    "settings",
    "database",
    "session",
    "migrations",
    "permissions",
    "pooler",
    "notify",
    "autovacuum",
    "connections",
    "clock",
    "versions",
    "waiting",
)

# The slots of a worker that is started without options, where none runs that could be asked.
DEFAULT_SLOTS = (100, 10)

# Seconds for which a NOTIFY is waited for; it takes milliseconds.
NOTIFY_TIMEOUT = 2.0

# Of NOTIFY's queue, from where on PostgreSQL itself warns in its log.
NOTIFY_QUEUE_FULL = 0.5

# How much of the server's connections may be open before somebody is told.
NEARLY_ALL = 0.9

# Seconds. Leases go by the database's clock alone; `run_after` is what comes from the sites'.
CLOCK_DIFFERENCE = 1.0

# Connections of psycopg_pool.ConnectionPool, unless it is told otherwise.
PSYCOPGS_POOL = 4


async def diagnose(alias: str) -> list[Finding]:
    """Make all the checks of ``TASKS[alias]``. Doesn't raise for what it is there to find."""
    findings = check_settings(alias)
    if any(finding.verdict == "error" for finding in findings):
        return findings + _not_checked(CHECKS[1:], "The settings have mistakes.")
    return findings + await _Examination(backend_of(alias)).run()


def check_settings(alias: str) -> list[Finding]:
    """What is wrong with ``TASKS[alias]`` and its DATABASE, without connecting anywhere."""
    where = f"TASKS[{alias!r}]"
    if not isinstance(settings.TASKS, Mapping) or alias not in settings.TASKS:
        known = ", ".join(map(repr, settings.TASKS)) if isinstance(settings.TASKS, Mapping) else "no dict"
        message = f"TASKS has no backend {alias!r}; it has {known}."
        return [Finding("settings", "error", message, "Name one of them with --backend.")]
    params: Any = settings.TASKS[alias]
    messages: list[CheckMessage] = []
    try:
        if issubclass(import_string(params["BACKEND"]), PostgresBackend):
            messages = check_backend(alias, params)
        if not any(message.is_serious() for message in messages):
            backend_of(alias)
    except Exception as error:  # whatever a mistake leads to
        reason = f"{where} can't be used: {type(error).__name__}: {error}"
        return [Finding("settings", "error", reason, f"Mend {where} in the settings.")]
    if not messages:
        return [Finding("settings", "ok", f"{where} is as it should be.")]
    return [
        Finding(
            "settings",
            "error" if message.is_serious() else "warning",
            f"{message.msg} ({message.id})",
            str(message.hint or f"Mend {where} or DATABASES in the settings."),
        )
        for message in messages
    ]


def _not_checked(names: Iterable[str], reason: str) -> list[Finding]:
    return [Finding(name, "not checked", reason) for name in names]


class _Examination:
    """The checks that need the database. What one of them has learnt, later ones use."""

    def __init__(self, backend: PostgresBackend) -> None:
        self._backend = backend
        self._options = backend.config
        self._database = self._options.database
        self._timeout = self._options.command_timeout
        self._line: OperatorConnection
        self._store: Store
        self._server: Server
        self._pooler: Pooler = "none"
        self._workers: list[WorkerRow] | None = None  # None: can't be looked up

    async def run(self) -> list[Finding]:
        checks = (
            self._check_database,
            self._check_session,
            self._check_migrations,
            self._check_permissions,
            self._check_pooler,
            self._check_notify,
            self._check_autovacuum,
            self._check_connections,
            self._check_clock,
            self._check_versions,
            self._check_waiting,
        )
        names = CHECKS[1:]
        findings: list[Finding] = []
        try:
            async with operator_connection(self._database, timeout=self._timeout) as self._line:
                self._store = Store(self._line)
                for name, check in zip(names, checks, strict=True):
                    try:
                        result = await check()
                    except utils.Error as error:
                        if name == "database" or self._line.connection.is_closed():
                            raise
                        result = "error", describe(error, self._database), _remedy(error)
                    findings.append(Finding(name, *result))
                    if name == "session" and result[0] == "error":
                        return findings + _not_checked(
                            names[len(findings) :], "aiotasks would look elsewhere than Django."
                        )
        except utils.Error as error:
            remedy = (
                f"See that the server runs and takes connections from here, and that HOST, PORT, NAME, USER, "
                f"PASSWORD and OPTIONS of DATABASES[{self._database!r}] are right."
            )
            if sqlstate(error) == Code.TOO_MANY_CONNECTIONS:
                remedy = _remedy(error)
            elif refuses_login(error) and await self._django_gets_in():
                remedy = GETS_IN
            name = names[len(findings)]
            findings.append(Finding(name, "error", describe(error, self._database), remedy))
        return findings + _not_checked(names[len(findings) :], "The database can't be reached.")

    async def _check_database(self) -> Result:
        self._server = server = await self._store.inspect_server()
        major, minor = divmod(server.version, 10_000)
        version = f"PostgreSQL {major}.{minor}"
        if server.read_only:
            return (
                "error",
                f"{version} at DATABASES[{self._database!r}] is read-only, perhaps a standby.",
                "Give it the primary's address, or several hosts with target_session_attrs=read-write.",
            )
        needed = connections[self._database].features.minimum_database_version
        if needed and major < needed[0]:
            return "error", f"{version} is older than Django supports.", f"Upgrade to {needed[0]} or newer."
        return "ok", f"{version} answers at DATABASES[{self._database!r}].", ""

    async def _check_session(self) -> Result:
        ours = await our_session(self._line)
        try:
            theirs = await djangos_session(self._database, timeout=self._timeout)
        except Exception as error:  # whatever an engine raises
            return (
                "warning",
                f"Django's own connection fails, where aiotasks' doesn't: {type(error).__name__}: {error}",
                "See what the engine, or a receiver of connection_created, adds to the settings.",
            )
        differing = differences(self._database, theirs, ours)
        if not differing:
            return "ok", f"Django's connection and aiotasks' are alike: role {ours.current_user}.", ""
        same = theirs[-2:] == ours[-2:] and theirs.server_since == ours.server_since
        if same and theirs._replace(search_path=ours.search_path)[:4] == ours[:4] and theirs.ssl <= ours.ssl:
            # As with django-tenants: it is for the site's tables.
            return (
                "ok",
                f"Django's connection and aiotasks' find the same tables: role {ours.current_user}.",
                "",
            )
        return (
            "warning" if same else "error",
            "; ".join(what for what, _ in differing) + ".",
            " ".join(remedy for _, remedy in differing),
        )

    async def _django_gets_in(self) -> bool:
        try:
            await djangos_session(self._database, timeout=self._timeout)
        except Exception:  # whatever an engine raises
            return False
        return True

    async def _check_migrations(self) -> Result:
        names = _migrations()
        applied: set[str] | None
        try:
            applied = await self._store.select_migrations()
        except utils.ProgrammingError as error:
            if sqlstate(error) not in (Code.NO_PRIVILEGE, Code.NO_TABLE):
                raise
            # Neither a site nor a worker needs a right to Django's table.
            applied = None if sqlstate(error) == Code.NO_PRIVILEGE else set()
        if applied is not None and (pending := [name for name in names if name not in applied]):
            role, rights, schemas = await self._store.select_rights()
            if rights is None and schemas:  # to migrate would make others
                return (
                    "error",
                    f"Role {role} doesn't find the tables, which are in the schema {' or '.join(schemas)}.",
                    f"GRANT USAGE ON SCHEMA {schemas[0]} TO {role}; have its search_path name that schema.",
                )
            return (
                "error",
                f"Not applied to DATABASES[{self._database!r}]: {', '.join(pending)}.",
                f"Run `manage.py migrate aiotasks --database {self._database}`.",
            )
        try:
            self._workers = await select_workers(self._store, self._backend.alias)
        except utils.ProgrammingError as error:
            if sqlstate(error) != Code.NO_PRIVILEGE:  # of what it may not do, the next check tells
                raise
        serving = await self._store.select_indexes()
        if serving and (lost := indexes.missing(serving)):
            return (
                "error",
                f"Missing or INVALID: {', '.join(lost)}. Statements that want it read the whole table.",
                f"Run, each by itself: {indexes.remedy(lost, self._database)}.",
            )
        if applied is None:
            return (
                "not checked",
                "This role may not read which are applied.",
                "GRANT SELECT ON django_migrations, or check as the role that migrates.",
            )
        return "ok", "All of aiotasks' migrations are applied, and its indexes are whole.", ""

    async def _check_permissions(self) -> Result:
        role, rights, _ = await self._store.select_rights()
        if rights is None:
            return "not checked", "The tables are missing.", ""
        result = judge(role, rights)
        if result[0] == "ok":
            result = judge_rows(role, rights, await self._store.select_row_security()) or result
        return result

    async def _check_pooler(self) -> Result:
        async with operator_connection(self._database, timeout=self._timeout) as other:
            self._pooler = await find_pooler(self._line, other)
        size = self._options.statement_cache_size
        match self._pooler:
            case "none":
                return "ok", "None: connections go to PostgreSQL itself.", ""
            case "session":
                return "ok", "One that gives each connection a session of its own.", ""
            case "transaction" if size:
                return (
                    "error",
                    "A pooler in transaction mode is in front, where prepared statements and session "
                    f"settings get lost, and STATEMENT_CACHE_SIZE is {size}.",
                    "Set STATEMENT_CACHE_SIZE to 0 in OPTIONS, or the pooler to session mode.",
                )
        return "ok", "One in transaction mode; STATEMENT_CACHE_SIZE is 0, as it has to be.", ""

    async def _check_notify(self) -> Result:
        polls = f"tasks wait for the next poll, up to {self._options.poll_interval:g} s"
        if not self._options.notify:
            return (
                "warning",
                f"NOTIFY is off in OPTIONS: {polls}.",
                "Set NOTIFY to True, unless that is meant.",
            )
        usage, pid, name, seconds = await self._store.notify_queue()
        if usage >= NOTIFY_QUEUE_FULL:
            return (
                "warning",
                f"NOTIFY's queue is {usage:.0%} full; once it is full, nothing wakes a worker, and {polls}. "
                "A session that LISTENs holds it up for as long as its transaction lasts."
                + (f" The oldest: process {pid} ({name}), {age(seconds or 0.0)}." if pid is not None else ""),
                f"Have it end its transaction, or SELECT pg_terminate_backend({pid}); "
                "idle_in_transaction_session_timeout ends such sessions by itself."
                if pid is not None
                else "See who LISTENs in a long transaction in pg_stat_activity of all databases.",
            )
        direct = self._options.listen_database
        try:
            arrives = await self._notify_arrives()
        except utils.Error as error:
            return (
                "warning",
                f"LISTEN can't be tried: {describe(error, direct or self._database)} Without it {polls}.",
                f"See what is wrong with DATABASES[{direct!r}]." if direct else _remedy(error),
            )
        if not arrives:
            remedy = (
                f"LISTEN_DATABASE has to lead to the same database as {self._database!r}, past any pooler: "
                f"see HOST, PORT and NAME of DATABASES[{direct!r}]."
                if direct
                else "LISTEN needs a session of its own: name an alias of DATABASES that goes past the "
                "pooler as LISTEN_DATABASE in OPTIONS."
            )
            return (
                "warning",
                f"NOTIFY doesn't arrive (it was not heard within {NOTIFY_TIMEOUT:g} s): {polls}.",
                remedy,
            )
        deaf = [f"{worker.host}:{worker.pid}" for worker in self._alive() if worker.listening is False]
        if deaf:
            return (
                "warning",
                f"NOTIFY arrives here, but doesn't wake {', '.join(deaf)}.",
                "See what these workers' logs say of LISTEN, and whether they have NOTIFY in their OPTIONS.",
            )
        return "ok", "NOTIFY arrives.", ""

    async def _notify_arrives(self) -> bool:
        # As a worker's listener connects, but for session settings, which may not be ours to make.
        listening = await connect(
            self._options.listen_database or self._database,
            timeout=self._timeout,
            statement_cache_size=0,
            command_timeout=self._timeout,
        )
        try:
            return await notify_arrives(listening, self._store, within=NOTIFY_TIMEOUT)
        finally:
            listening.terminate()

    async def _check_autovacuum(self) -> Result:
        if not self._server.vacuums:
            return (
                "error",
                "autovacuum or track_counts is off: dead rows pile up, and claims get slower and slower.",
                "Set both to on in postgresql.conf and reload it.",
            )
        return storage.judge(await self._store.select_storage())

    async def _check_connections(self) -> Result:
        if self._pooler != "none":
            return "not checked", "A pooler is in front, so its limits are the ones that count.", ""
        alive = self._alive()
        slots = [(worker.loop.slots, worker.thread.slots) for worker in alive] or [DEFAULT_SLOTS]
        each = [self._options.most_connections(*numbers) for numbers in slots]
        who = f"{len(alive)} running" if alive else "one by default"
        server = self._server
        message = (
            f"Workers ({who}) open at most {sum(each)} connections of the {server.allowed} that there may "
            f"be; open now, by everybody: {server.open} of {server.slots}."
        )
        remedy = (
            "Raise max_connections (or the role's or database's CONNECTION LIMIT), or lower POOL_MAX_SIZE, "
            "ASYNC_DB_THREADS or the workers' --threads."
        )
        if max(each) > server.allowed:
            return "error", message, remedy
        if (pool := self._djangos_pool()) is not None:
            threads = max(self._options.orm_connections(loop) + thread for loop, thread in slots)
            if threads > pool:
                return (
                    "warning",
                    f"Django's pool of DATABASES[{self._database!r}] has {pool} connections a process, and a "
                    f"worker's threads may want {threads} at a time: they wait for each other.",
                    f"Set the pool's max_size to {threads}, or lower ASYNC_DB_THREADS or --threads.",
                )
        if sum(each) > server.allowed or server.open > NEARLY_ALL * server.slots:
            return "warning", message, remedy
        return "ok", message, ""

    def _djangos_pool(self) -> int | None:
        """How many connections psycopg's pool has at most; None where Django has no pool."""
        options = connections[self._database].settings_dict["OPTIONS"].get("pool")
        if not options:
            return None
        given = options if isinstance(options, Mapping) else {}
        return int(given.get("max_size") or given.get("min_size", PSYCOPGS_POOL))

    async def _check_clock(self) -> Result:
        difference, doubt = await clock_difference(self._store)
        if abs(difference) - doubt > CLOCK_DIFFERENCE:
            order = "ahead of" if difference > 0 else "behind"
            return (
                "warning",
                f"The database's clock is {abs(difference):.1f} s {order} this host's: a `run_after` that is "
                "counted from here is due by that much early or late.",
                "Have both synchronised, by NTP for example.",
            )
        return "ok", f"The database's clock and this host's differ by {abs(difference) * 1000:.0f} ms.", ""

    async def _check_versions(self) -> Result:
        if self._workers is None:
            return "not checked", "The workers' rows can't be read.", ""
        alive = self._alive()
        if not alive:
            return (
                "warning",
                f"No worker of {self._backend.alias!r} has a live lease: nothing runs.",
                f"Start one: `manage.py aiotasks worker --backend {self._backend.alias}`.",
            )
        versions = Counter(worker.version for worker in alive)
        told = ", ".join(f"{version} ({number})" for version, number in sorted(versions.items()))
        if versions.keys() != {__version__}:
            return (
                "warning",
                f"The workers' versions are {told}, and {__version__} is installed here.",
                "Fine during a deploy; after it, restart the workers that were left behind.",
            )
        return "ok", f"All workers have this version: {told}.", ""

    async def _check_waiting(self) -> Result:
        if self._workers is None:
            return "not checked", "The workers' rows can't be read.", ""
        try:
            found = await self._store.list_waiting(waiting.LIMIT)
        except utils.ProgrammingError as error:
            if sqlstate(error) != Code.NO_PRIVILEGE:
                raise
            return "not checked", "This role may not read the tasks.", ""
        workers = {
            backend: [one for one in await select_workers(self._store, backend) if one.alive]
            for backend in {one.backend for one in found}
        }
        for alias in settings.TASKS:
            for one, alive in await self._waiting_elsewhere(alias):
                found.append(one)
                workers[alias] = alive
        return waiting.judge(found, workers, list(settings.TASKS))

    async def _waiting_elsewhere(self, alias: str) -> list[tuple[WaitingLane, list[WorkerRow]]]:
        """What waits of a backend that has another database, and its live workers."""
        try:
            config = getattr(task_backends[alias], "config", None)
            if not isinstance(config, Options) or config.database == self._database:
                return []
            async with operator_connection(config.database, timeout=self._timeout) as line:
                store = Store(line)
                alive = [one for one in await select_workers(store, alias) if one.alive]
                found = await store.list_waiting(waiting.LIMIT)
        except (ImproperlyConfigured, InvalidTaskBackend, utils.Error):
            return []  # a check of that backend says what is wrong with it
        return [(one, alive) for one in found if one.backend == alias]

    def _alive(self) -> list[WorkerRow]:
        return [worker for worker in self._workers or () if worker.alive]


def _remedy(error: utils.Error) -> str:
    if sqlstate(error) == Code.TOO_MANY_CONNECTIONS:
        return "Raise max_connections, or see in pg_stat_activity who has them all."
    return "The server's log may say more."


def _migrations() -> list[str]:
    """The names of aiotasks' migrations, without the rest of the site's, which may have mistakes."""
    module, _ = MigrationLoader.migrations_module("aiotasks")
    if module is None:
        return []  # MIGRATION_MODULES says that there are none
    names = (name for _, name, is_package in iter_modules(import_module(module).__path__) if not is_package)
    return sorted(name for name in names if name[0] not in "_~")
