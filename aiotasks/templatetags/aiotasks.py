"""``{% aiotasks_progress result %}``: a progress bar that follows a task."""

from collections.abc import Mapping
from math import isnan
from typing import Any, TypeGuard

from django import template
from django.template import Context
from django.urls import reverse

# Absolute, because Django imports this module by its own path.
from aiotasks.exceptions import InvalidRow
from aiotasks.metadata.progress import KEY
from aiotasks.rows import AnyResult
from aiotasks.web.tokens import sign

__all__ = ["aiotasks_progress", "register"]

register = template.Library()

# Its presence says that the page has the script and the style sheet.
_HAS_MEDIA = "aiotasks_has_media"


@register.inclusion_tag("aiotasks/progress.html", takes_context=True)
def aiotasks_progress(
    context: Context,
    result: AnyResult,
    label: str | None = None,
    user: Any = None,
    url: str | None = None,
) -> dict[str, Any]:
    """Draw a progress bar of the result's task, and have the page's script follow the task.

    label: what stands above it; the name of the task's function by default. user: the only one who may follow
    the task; whoever sees the page by default. url: where ``events`` is, if the site doesn't include
    aiotasks.urls.
    """
    has_media = _HAS_MEDIA in context.render_context
    context.render_context[_HAS_MEDIA] = True
    progress = _progress_of(result)
    token = sign(result, user=user)  # of a finished task, too: a name that doesn't exist comes as ""
    is_successful = result.status == "SUCCESSFUL"
    share = 1.0 if is_successful else _share(progress)
    message = progress.get("message")
    return {
        "result": result,
        "status": "CANCELLED" if getattr(result, "is_cancelled", False) else result.status,
        "label": result.task.func.__name__ if label is None else label,
        "message": message if isinstance(message, str) and not is_successful else "",  # as progress.js
        "is_open": share is None and result.status == "RUNNING",
        "share": f"{share or 0.0:.4f}",  # no decimal comma
        "percent": None if share is None else int(share * 100 + 1e-9),  # 0.29 * 100 < 29
        "url": reverse("aiotasks:events") if url is None else url,
        "token": "" if result.is_finished else token,
        "needs_media": not has_media,
        "nonce": context.get("csp_nonce"),  # Django's makes one when it is written, and is false before
    }


def _progress_of(result: AnyResult) -> Mapping[str, Any]:
    try:
        metadata = getattr(result, "metadata", None)
    except InvalidRow:
        metadata = None
    progress = metadata.get(KEY) if isinstance(metadata, Mapping) else None
    return progress if isinstance(progress, Mapping) else {}


def _share(progress: Mapping[str, Any]) -> float | None:
    """How much is done, from 0 to 1; None where that isn't known."""
    done, total = progress.get("done"), progress.get("total")
    if not _is_number(done) or not _is_number(total) or total <= 0:
        return None
    try:
        share = done / total
    except OverflowError:  # other code's numbers
        return None
    return None if isnan(share) else min(max(share, 0.0), 1.0)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
