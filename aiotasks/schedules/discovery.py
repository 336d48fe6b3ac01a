"""Imports the modules whose code declares schedules."""

import logging
from importlib import import_module

from django.apps import apps
from django.utils.module_loading import module_has_submodule

from ..conf import Options

__all__ = ["discover", "import_modules", "modules_of", "modules_of_apps"]

logger = logging.getLogger("aiotasks.worker")

# In each installed app.
MODULES = ("tasks", "schedules")


def discover(options: Options) -> bool:
    """Import the modules that may declare schedules. Returns whether all could be imported.

    These are the modules ``tasks`` and ``schedules`` of the installed apps, or in place of them those that
    SCHEDULES names. Each one that fails is logged. Blocks, for as long as the imports take.
    """
    errors = import_modules(modules_of(options))
    for module, error in errors.items():
        logger.error(
            "Could not import a module that may declare schedules; this worker stops none module=%s",
            module,
            exc_info=error,
        )
    return not errors


def modules_of(options: Options) -> list[str]:
    """Return the names of the modules that may declare schedules of a backend."""
    if options.schedules is None:
        return modules_of_apps(MODULES)
    return list(options.schedules or ())


def modules_of_apps(names: tuple[str, ...]) -> list[str]:
    """Return the names of these modules of the installed apps, of those that there are."""
    return [
        f"{config.name}.{name}"
        for config in apps.get_app_configs()
        for name in names
        if config.module is not None and module_has_submodule(config.module, name)
    ]


def import_modules(modules: list[str]) -> dict[str, BaseException]:
    """Import modules; return the error of each that fails."""
    errors: dict[str, BaseException] = {}
    for module in modules:
        try:
            import_module(module)
        except (Exception, SystemExit) as error:  # it is the site's code, which may raise anything  # noqa: BLE001
            errors[module] = error
    return errors
