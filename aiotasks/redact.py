"""REDACT: a site's own say in what is stored and shown of the texts that may hold its secrets."""

import logging
from collections.abc import Callable
from functools import cache

from django.utils.module_loading import import_string

__all__ = ["load_redactor", "redacted"]

logger = logging.getLogger("aiotasks")


@cache
def load_redactor(path: str) -> Callable[[str], str]:
    """The function at a dotted path. Raises ImportError, TypeError, or whatever its module does."""
    found = import_string(path)
    if not callable(found):
        raise TypeError(f"{path!r} is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]  # what it takes and returns shows when it is called


def redacted(text: str, *, by: str | None) -> str:
    """What the function at the path ``by`` makes of ``text``; the text itself where there is none.

    Never raises, and never gives the text itself away where the function fails: what it raises may
    quote the text, so that isn't logged either.
    """
    if by is None:
        return text
    try:
        result = load_redactor(by)(text)
        if isinstance(result, str):
            return result
        failure = f"returned a {type(result).__name__}"
    except BaseException as error:  # it is user code, which may raise anything
        failure = f"raised a {type(error).__name__}"
    logger.error("REDACT %r %s, so a text was left out altogether", by, failure)
    return f"(left out: REDACT {failure})\n"
