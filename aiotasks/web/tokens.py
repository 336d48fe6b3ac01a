"""Tokens: who has one may follow the tasks that it names. Signed with SECRET_KEY, and valid for a time."""

import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, NamedTuple

from django.core import signing
from django.tasks import TaskResult

from ..rows import AnyResult

__all__ = ["MAX_AGE", "Grant", "read_token", "sign"]

# Its own, so that nothing else that a site signs is a token, and no token is anything else.
SALT = "aiotasks.views.events"

# Seconds for which a token is valid.
MAX_AGE = 86_400


class Grant(NamedTuple):
    """What a token grants: to follow these tasks of a backend. ``user``: the primary key, as text, of the
    only one who may; None: whoever has the token."""

    backend: str
    ids: list[str]
    user: str | None


def sign(
    result: AnyResult | Iterable[AnyResult],
    *,
    user: Any = None,
    max_age: float | timedelta = MAX_AGE,
) -> str:
    """Return a token to follow a task, or several of one backend, by ``events``.

    user: the only one who may use it; None, or an anonymous one: whoever has it may. max_age: seconds, or a
    timedelta, for which it is valid. Raises TypeError for a user that isn't one or isn't saved, and
    ValueError for no results, or for those of several backends.
    """
    results = [result] if isinstance(result, TaskResult) else list(result)
    backends = {each.backend for each in results}
    if len(backends) != 1:
        raise ValueError(f"sign() needs results of one backend, not of {sorted(backends) or 'none'}.")
    seconds = max_age.total_seconds() if isinstance(max_age, timedelta) else max_age
    return signing.dumps(
        [
            backends.pop(),
            [each.id for each in results],
            _primary_key(user),
            int(time.time() + seconds),
        ],
        salt=SALT,
        compress=True,  # of many ids
    )


def _primary_key(user: Any) -> str | None:
    """Return the user's primary key as text, and None only where anybody may use the token: a mistake, such
    as a primary key in place of a user, must not open it to all."""
    if user is None or getattr(user, "is_anonymous", False) is True:
        return None
    primary_key = getattr(user, "pk", None)
    if primary_key is None or primary_key == "":
        raise TypeError(f"sign() needs a saved user, an anonymous one or None, not {type(user).__name__}.")
    return str(primary_key)


def read_token(token: str) -> Grant | None:
    """Return what the token grants; None if it isn't one of ours, or not any more."""
    try:
        backend, ids, user, until = signing.loads(token, salt=SALT)
    except (signing.BadSignature, ValueError):  # a signed one of another release, perhaps
        return None
    return Grant(backend, ids, user) if time.time() < until else None
