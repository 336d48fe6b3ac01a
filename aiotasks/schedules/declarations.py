"""What the code declares: ``periodic()``, the schedules that it has named, and the rows that they become."""

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from inspect import unwrap
from types import FrameType, FunctionType
from typing import Any, NamedTuple

from django.tasks import Task, task_backends
from django.tasks.exceptions import InvalidTask

from ..backend import PostgresBackend
from ..enqueueing import check_path, make_rows
from ..exceptions import UnknownTask
from ..policies.policy import PolicyFields
from ..registry import resolve
from ..rows import AnyTask, Missed, Overlap, Schedule, UniqueJob
from ..signatures import check_call
from .wanted import Wanted, parse_name, parse_wanted

__all__ = [
    "Declaration",
    "Problem",
    "declared",
    "error_text",
    "find_elsewhere",
    "find_problems",
    "forget",
    "is_within",
    "periodic",
]


@dataclass(frozen=True, kw_only=True)
class Declaration:
    """A schedule of a task, by its name. ``module``: that declares it; None: an operator adds it."""

    name: str
    task: AnyTask
    wanted: Wanted
    module: str | None = None

    @cached_property
    def row(self) -> Schedule:
        """What the table stores of it. Raises InvalidTask, TypeError or ValueError if no worker could run its
        task, or its arguments can't be stored."""
        backend = task_backends[self.task.backend]
        if not isinstance(backend, PostgresBackend):
            raise InvalidTask(f"TASKS[{self.task.backend!r}] isn't a backend of aiotasks.")
        _check_fit(self.task, self.wanted)
        backend.validate_task(self.task)
        check_path(self.task)
        wanted = self.wanted
        calls = [(wanted.args, wanted.kwargs)]
        (job,), _ = make_rows(self.task, calls, backend.alias, backend.config, many=False)
        unique = job if isinstance(job, UniqueJob) else None
        template = job.template
        return Schedule(
            name=self.name,
            expression=wanted.times.expression,
            timezone=wanted.times.timezone,
            missed=wanted.missed,
            missed_within=wanted.within,
            overlap=(wanted.overlap or "skip") if unique is None else None,
            jitter=wanted.jitter,
            task_path=template.task_path,
            queue_name=template.queue_name,
            lane=template.lane,
            priority=template.priority,
            args=job.args,
            kwargs=job.kwargs,
            expires=template.expires,
            metadata=template.metadata,
            unique_key=None if unique is None else unique.key,
            unique_period=None if unique is None else unique.rule.period,
            unique_waiting=None if unique is None else unique.rule.waiting,
            limit_key=job.limit_key,
            ordered=template.ordered,
            policy=template.policy,
        )


class Problem(NamedTuple):
    """A schedule that can't be declared, by its name, and what is wrong: a sentence for people. cause: the
    error of the import because of which its task isn't there; None: it isn't one."""

    name: str
    text: str
    cause: str | None = None


def periodic[Owner](
    cron: str | None = None,
    *,
    every: timedelta | float | None = None,
    timezone: str | None = None,
    name: str | None = None,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    missed: Missed = "last",
    within: timedelta | float | None = None,
    overlap: Overlap | None = None,
    jitter: timedelta | float | None = None,
) -> Callable[[Owner], Owner]:
    """Have workers enqueue a task again and again. Stands over or below ``@task``; also a function of a Task,
    such as ``periodic("@daily")(report.using(queue_name="slow"))``.

    cron: an expression of five fields (minute, hour, day of the month, month, day of the week), or of six
    with the second in front; or ``@hourly``, ``@daily``, ``@weekly``, ``@monthly``, ``@yearly``.
    every: in place of it, an interval, as seconds or a timedelta. timezone: by whose clock the expression
    goes; None: TIME_ZONE of the settings. name: within its backend; None: the path of the task.
    args, kwargs: of each call. missed: what becomes of ticks that no worker was there for: the "last" of them
    is made up for, none ("skip"), or "all". within: for how many seconds after a tick, or as a timedelta;
    None: for "last" however late, for "skip" 60 s, for "all" a day. overlap: what a tick does while the task
    of an earlier one is unfinished: it is left out ("skip"), waits, but one at most ("queue"), or is
    enqueued all the same ("allow"); None: "skip", or for a task with a unique_key what that one says.
    jitter: by up to how many seconds, or a timedelta, a task is due after its tick.

    Raises InvalidTask for what can't be a schedule.
    """
    if callable(cron) or isinstance(cron, Task):
        raise InvalidTask("@periodic needs to be told when: write @periodic('*/5 * * * *').")
    try:
        wanted = parse_wanted(
            cron,
            every=every,
            timezone=timezone,
            args=args,
            kwargs=kwargs,
            missed=missed,
            within=within,
            overlap=overlap,
            jitter=jitter,
        )
        known_name = None if name is None else parse_name(name)
    except (TypeError, ValueError) as error:
        raise InvalidTask(f"@periodic: {error}") from None

    def wrapper(owner: Owner) -> Owner:
        _register(owner, known_name, wanted, _places(sys._getframe(1)))
        return owner

    return wrapper


def _check_fit(task: AnyTask, wanted: Wanted) -> None:
    """Raise InvalidTask for a schedule that doesn't fit its task."""
    path = task.module_path
    if task.run_after is not None:
        raise InvalidTask(f"The schedule says when {path} runs, so its task can't have a run_after.")
    if wanted.overlap is not None and isinstance(task, PolicyFields) and task.unique_key is not None:
        raise InvalidTask(
            f"{path} has a unique_key, which says what a tick does while its key is held. Leave out the "
            f"overlap ({wanted.overlap!r}), or have a task without the key."
        )
    try:
        check_call(task.func, path, wanted.args, wanted.kwargs, takes_context=task.takes_context)
    except TypeError as error:
        raise InvalidTask(f"The arguments of the schedule don't fit: {error}") from None


@dataclass(frozen=True, slots=True)
class _Entry:
    """One ``@periodic``. ``task`` is None where it stands below ``@task``, until that has made one.

    places: the modules of the code that has called it, the last of them is the module that was imported.
    """

    path: str
    function: Callable[..., Any]
    task: AnyTask | None
    name: str | None
    wanted: Wanted
    places: tuple[str, ...]

    def shown_name(self) -> str:
        return self.path if self.name is None else self.name

    def module_in(self, modules: Collection[str]) -> str | None:
        """Return which of its modules is one of these, or within one; None if none is."""
        return next((place for place in self.places if is_within(place, modules)), None)

    def declaration(self, module: str | None = None) -> Declaration:
        """Raises UnknownTask if there is no task at the path."""
        task = self.task or resolve(self.path)
        return Declaration(name=self.shown_name(), task=task, wanted=self.wanted, module=module)


# By the path of the task, in the order of the code.
_entries: dict[str, list[_Entry]] = {}


def is_within(module: str, modules: Collection[str]) -> bool:
    """Return whether a module is one of these, or in a package that is."""
    return module in modules or any(module.startswith(f"{each}.") for each in modules)


def _places(frame: FrameType | None) -> tuple[str, ...]:
    """The modules of the code that runs, up to the body of the module that is being imported: a site may
    have functions of its own that call ``periodic``."""
    places: dict[str, None] = {}
    while frame is not None:
        places[frame.f_globals.get("__name__", "?")] = None
        if frame.f_code.co_name == "<module>":
            break
        frame = frame.f_back
    return tuple(places)


def _register(owner: Any, name: str | None, wanted: Wanted, places: tuple[str, ...]) -> None:
    if isinstance(owner, Task):
        _check_fit(owner, wanted)
        entry = _Entry(owner.module_path, owner.func, owner, name, wanted, places)
    elif isinstance(owner, FunctionType):
        entry = _Entry(f"{owner.__module__}.{owner.__qualname__}", owner, None, name, wanted, places)
    else:
        raise InvalidTask(f"@periodic stands over or below @task, and can't decorate {owner!r:.200}.")
    entries = _entries.setdefault(entry.path, [])
    # A decorator between two of them may have wrapped the function.
    if any(unwrap(each.function) is not unwrap(entry.function) for each in entries):
        entries.clear()  # the module is run again: these are of the last time
    backend = None if entry.task is None else entry.task.backend
    for each in entries:
        if each.shown_name() == entry.shown_name() and backend == (each.task and each.task.backend):
            raise InvalidTask(
                f"{entry.path} has several schedules of the name {entry.shown_name()!r}"
                + (", which is the one without name=…" if name is None else "")
                + ". Give each a name of its own: @periodic(…, name='…')."
            )
    entries.append(entry)


def forget(module: str) -> None:
    """Forget what a module has declared whose import has failed: it will be run again."""
    for entries in _entries.values():
        entries[:] = [entry for entry in entries if entry.places[-1] != module]


def declared(backend: str, modules: Collection[str]) -> list[Declaration]:
    """Return the schedules of a backend that these modules declare, and modules within them, and that are
    right."""
    return [each for each in _examine(backend, modules) if isinstance(each, Declaration)]


def find_problems(backend: str, modules: Collection[str]) -> list[Problem]:
    """Return what is wrong with the other ones of these modules."""
    return [each for each in _examine(backend, modules) if isinstance(each, Problem)]


def find_elsewhere(backend: str, modules: Collection[str]) -> dict[str, str]:
    """Return the schedules that this process has come across in other modules: their modules, by name."""
    found: dict[str, str] = {}
    for entry in _all_entries():
        if entry.module_in(modules) is None:
            try:
                declaration = entry.declaration()
            except (InvalidTask, UnknownTask):
                continue
            if declaration.task.backend == backend:
                found[declaration.name] = entry.places[0]
    return found


def error_text(error: BaseException) -> str:
    """Return an error of the site's code in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _all_entries() -> list[_Entry]:
    return [entry for entries in list(_entries.values()) for entry in entries]


def _examine(backend: str, modules: Collection[str]) -> Iterator[Declaration | Problem]:
    """The schedules of a backend; a problem for each that is wrong. Of several with one name, all are."""
    found: dict[str, list[Declaration]] = {}
    for entry in _all_entries():
        module = entry.module_in(modules)
        if module is None or (entry.task is not None and entry.task.backend != backend):
            continue
        name = entry.shown_name()
        try:
            declaration = entry.declaration(module)
            if declaration.task.backend != backend:
                continue
            found.setdefault(declaration.row.name, []).append(declaration)
        except (InvalidTask, TypeError, UnknownTask, ValueError) as error:
            cause = error.__cause__ if isinstance(error, UnknownTask) else None
            text = f"Schedule {name!r} of {entry.path} can't be used: {error}"
            yield Problem(name, text, None if cause is None else error_text(cause))
    for name, declarations in found.items():
        if len(declarations) == 1:
            yield declarations[0]
        else:
            paths = ", ".join(each.task.module_path for each in declarations)
            yield Problem(
                name, f"{len(declarations)} schedules have the name {name!r}, of {paths}: rename all but one."
            )
