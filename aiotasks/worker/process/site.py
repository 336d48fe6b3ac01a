"""The site of a process that has no manage.py: its settings, and its apps."""

import os
import sys
from contextlib import suppress

from django.core.exceptions import ImproperlyConfigured

__all__ = ["set_up"]


def set_up(module: str | None, *, imports_apps: bool = True) -> str | None:
    """Load the settings and set up Django, with the working directory in ``sys.path`` as manage.py has it.

    module: of the settings; None: DJANGO_SETTINGS_MODULE names it.
    imports_apps: else only the settings are loaded, and logging is as they say.

    Returns None, or a sentence that says why it can't be done.
    """
    if module:
        os.environ["DJANGO_SETTINGS_MODULE"] = module
    name = os.environ.get("DJANGO_SETTINGS_MODULE")
    if not name:
        return "no settings: give --settings or set DJANGO_SETTINGS_MODULE."
    if name.startswith("."):
        return f"the settings {name!r} aren't a module's full name."
    with suppress(FileNotFoundError):  # the directory has been removed: the site may be installed
        sys.path.insert(0, os.getcwd())
    import django
    from django.conf import settings
    from django.utils.log import configure_logging

    try:
        if imports_apps:
            django.setup()
        else:
            configure_logging(settings.LOGGING_CONFIG, settings.LOGGING)
    except ImproperlyConfigured as error:
        return str(error)
    except ImportError as error:
        where = "" if _has_directory() else " The working directory, where they may be, has been removed."
        return f"the settings {name!r} can't be loaded: {error}.{where}"
    return None


def _has_directory() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True
