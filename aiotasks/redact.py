"""REDACT: a site's own function rewrites the texts of errors before they are stored or shown."""

import logging
from collections.abc import Callable
from functools import cache

from django.utils.module_loading import import_string

__all__ = ["load_redactor", "redacted"]

logger = logging.getLogger("aiotasks")


@cache
def load_redactor(path: str) -> Callable[[str], str]:
    """Return the function at a dotted path. Raises ImportError, TypeError, or any error of its module."""
    found = import_string(path)
    if not callable(found):
        raise TypeError(f"{path!r} is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]  # its types show when it is called


def redacted(text: str, *, by: str | None) -> str:
    """Return ``text`` as the function at the path ``by`` rewrites it; the text itself if ``by`` is None.

    Never raises. If the function fails, a fixed text is returned. Its error isn't logged, because it may
    quote the text.
    """
    if by is None:
        return text
    try:
        result = load_redactor(by)(text)
        if isinstance(result, str):
            return result
        failure = f"returned a {type(result).__name__}"
    except BaseException as error:  # it is user code, which may raise anything  # noqa: BLE001
        failure = f"raised a {type(error).__name__}"
    logger.error("REDACT failed, so the text of an error was left out function=%r reason=%r", by, failure)
    return f"(left out: REDACT {failure})\n"
