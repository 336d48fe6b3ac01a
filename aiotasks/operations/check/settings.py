"""Check ``settings``: ``TASKS[alias]`` and its DATABASE, without a connection."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.utils.module_loading import import_string

from ...backend import PostgresBackend
from ...checks import check_backend
from ...worker.startup import backend_of
from .finding import Finding

if TYPE_CHECKING:
    from django.core.checks import CheckMessage

__all__ = ["check_settings"]


def check_settings(alias: str) -> list[Finding]:
    """Return what is wrong with ``TASKS[alias]`` and its DATABASE; connects nowhere."""
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
    except Exception as error:  # the site's settings may raise anything  # noqa: BLE001
        reason = f"{where} can't be used: {type(error).__name__}: {error}"
        return [Finding("settings", "error", reason, f"Fix {where} in the settings.")]
    if not messages:
        return [Finding("settings", "ok", f"{where} is as it should be.")]
    return [
        Finding(
            "settings",
            "error" if message.is_serious() else "warning",
            f"{message.msg} ({message.id})",
            str(message.hint or f"Fix {where} or DATABASES in the settings."),
        )
        for message in messages
    ]
