"""Access: which tasks a request asks for, and whether it may see them."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from inspect import isawaitable, iscoroutinefunction
from typing import NamedTuple

from asgiref.sync import sync_to_async
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.http import HttpRequest, JsonResponse
from django.tasks import task_backends
from django.tasks.backends.base import BaseTaskBackend
from django.tasks.exceptions import InvalidTaskBackend, TaskResultDoesNotExist

from ..exceptions import InvalidRow, UnknownTask
from ..rows import AnyResult
from .tokens import read_token

__all__ = ["MOST_TASKS", "Permission", "Refused", "Wanted", "find_wanted"]

# Tasks of one request. A page has fewer, and each change of one is compared with what the client has of all.
MOST_TASKS = 200

# Says whether the request may see the result's task. May be a coroutine function.
type Permission = Callable[[HttpRequest, AnyResult], bool | Awaitable[bool]]


class Wanted(NamedTuple):
    """A task that a request asks for, and may see. ``backend``: an alias of TASKS."""

    backend: str
    id: str


class Refused(Exception):
    """The request isn't answered with states."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self._status = status

    def response(self) -> JsonResponse:
        return JsonResponse({"error": str(self)}, status=self._status)


async def find_wanted(request: HttpRequest, permission: Permission | None) -> list[Wanted]:
    """Return the tasks that the request asks for, each once; raises Refused.

    They are named by tokens, or, where the site has a permission function, by ids.
    """
    tokens, ids = request.GET.getlist("token"), request.GET.getlist("id")
    if not tokens and not ids:
        names = "'token' or 'id'" if permission else "'token'"
        raise Refused(HTTPStatus.BAD_REQUEST, f"The parameter {names} is missing.")
    if len(tokens) + len(ids) > MOST_TASKS:
        raise _too_many()
    wanted = [each for token in tokens for each in await _granted(request, token)]
    if ids:
        if permission is None:
            raise Refused(HTTPStatus.FORBIDDEN, "Tasks are named by tokens here.")
        alias = request.GET.get("backend", "default")
        wanted += [await _permitted(request, alias, id, permission) for id in ids]
    if len(wanted) > MOST_TASKS:
        raise _too_many()
    return list(dict.fromkeys(wanted))


def _too_many() -> Refused:
    return Refused(HTTPStatus.BAD_REQUEST, f"One request may name {MOST_TASKS} tasks.")


async def _granted(request: HttpRequest, token: str) -> list[Wanted]:
    grant = read_token(token)
    if grant is None:
        raise Refused(HTTPStatus.FORBIDDEN, "The token isn't valid, or not any more.")
    if grant.user is not None and await _user_of(request) != grant.user:
        raise Refused(HTTPStatus.FORBIDDEN, "The token is another user's.")
    _backend(grant.backend)
    return [Wanted(grant.backend, id) for id in grant.ids]


async def _user_of(request: HttpRequest) -> str | None:
    if not hasattr(request, "auser"):
        raise ImproperlyConfigured("Tokens of users need AuthenticationMiddleware in MIDDLEWARE.")
    primary_key = (await request.auser()).pk
    return None if primary_key is None else str(primary_key)


def _backend(alias: str) -> BaseTaskBackend:
    try:
        return task_backends[alias]
    except InvalidTaskBackend:
        raise Refused(HTTPStatus.NOT_FOUND, "There is no such backend.") from None


async def _permitted(request: HttpRequest, alias: str, id: str, permission: Permission) -> Wanted:
    try:
        result = await _backend(alias).aget_result(id)
    except (TaskResultDoesNotExist, UnknownTask, InvalidRow, NotImplementedError):
        raise Refused(HTTPStatus.NOT_FOUND, "There is no such task.") from None
    try:
        if iscoroutinefunction(permission):
            is_permitted = await permission(request, result)
        else:
            is_permitted = await sync_to_async(permission, thread_sensitive=True)(request, result)
            if isawaitable(is_permitted):
                is_permitted = await is_permitted
    except PermissionDenied:
        is_permitted = False
    if not is_permitted:
        raise Refused(HTTPStatus.FORBIDDEN, "This task isn't for you.")
    return Wanted(alias, result.id)
