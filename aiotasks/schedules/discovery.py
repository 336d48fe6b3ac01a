"""Imports the modules whose code declares schedules, and reads what it declares."""

import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import NamedTuple

from django.apps import apps
from django.utils.module_loading import module_has_submodule

from ..conf import Options
from .declarations import (
    Declaration,
    Problem,
    declared,
    error_text,
    find_elsewhere,
    find_problems,
    forget,
)

__all__ = ["Discovered", "Trouble", "import_modules", "modules_of_apps", "read_code"]

# In each installed app.
MODULES = ("tasks", "schedules")

# More names than these don't help.
SHOWN = 5


class Discovered(NamedTuple):
    """What the code declares for a backend.

    problems: the schedules that can't be declared. failed: the modules that may declare some and can't be
    imported, and why. elsewhere: schedules that other modules declare, which don't count, because not every
    process imports them: their modules, by name.
    """

    declarations: list[Declaration]
    problems: list[Problem]
    failed: Mapping[str, BaseException]
    elsewhere: Mapping[str, str]

    def troubles(self) -> "list[Trouble]":
        """What is wrong, once, with all that hangs on it: one import may fail many modules and schedules."""
        found: dict[str, Trouble] = {}
        for module, error in self.failed.items():
            found.setdefault(error_text(error), Trouble([], [], error)).modules.append(module)
        for problem in self.problems:
            found.setdefault(problem.cause or problem.text, Trouble([], [])).problems.append(problem)
        return list(found.values())


class Trouble(NamedTuple):
    """What is wrong with the code, and what hangs on it: modules that can't be imported because of
    ``error`` (None: none is), and schedules that can't be declared."""

    modules: list[str]
    problems: list[Problem]
    error: BaseException | None = None

    def text(self) -> str:
        """A sentence for people, without a full stop where it ends with an error."""
        names = _named([repr(problem.name) for problem in self.problems])
        number = len(self.problems)
        if self.error is None:
            first = self.problems[0]
            if number == 1:
                return first.text
            return f"{number} schedules can't be used ({names}), because of one error: {first.cause}"
        its, it_has = ("its", "it has") if len(self.modules) == 1 else ("their", "they have")
        more = f", and {number} more can't be used ({names})" if number else ""
        return (
            f"{_named(self.modules)} can't be imported, so workers don't declare {its} schedules, and stop "
            f"none that {it_has} declared before{more}: {error_text(self.error)}"
        )


def _named(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def read_code(backend: str, options: Options) -> Discovered:
    """Import the modules that may declare schedules of a backend, and return what they declare.

    These are the modules ``tasks`` and ``schedules`` of the installed apps, or in place of them those that
    SCHEDULES names. Blocks, for as long as the imports take.
    """
    modules = modules_of_apps(MODULES) if options.schedules is None else list(options.schedules or ())
    failed = import_modules(modules)
    imported = [module for module in modules if module not in failed]
    return Discovered(
        declared(backend, imported),
        find_problems(backend, imported),
        failed,
        find_elsewhere(backend, modules),
    )


def modules_of_apps(names: tuple[str, ...]) -> list[str]:
    """Return the names of these modules of the installed apps, of those that there are."""
    return [
        f"{config.name}.{name}"
        for config in apps.get_app_configs()
        for name in names
        if config.module is not None and module_has_submodule(config.module, name)
    ]


def import_modules(modules: Iterable[str]) -> dict[str, BaseException]:
    """Import modules; return the error of each that fails."""
    errors: dict[str, BaseException] = {}
    for module in modules:
        if module not in sys.modules:
            forget(module)  # an import before may have failed halfway
        try:
            import_module(module)
        except (Exception, SystemExit) as error:  # it is the site's code, which may raise anything  # noqa: BLE001
            errors[module] = error
    return errors
