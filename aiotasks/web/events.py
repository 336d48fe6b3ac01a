"""The view ``events``."""

from http import HTTPStatus

from django.core.handlers.asgi import ASGIRequest
from django.db import connections, transaction, utils
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils.cache import patch_vary_headers

from ..db.errors import is_transient
from .access import Permission, Refused, Wanted, find_wanted
from .states import Shown, look_up, states_json
from .stream import Cursor, stream

__all__ = ["events"]

EVENT_STREAM, JSON = "text/event-stream", "application/json"

# Seconds after which a client that polls asks again.
POLL_INTERVAL = 2


async def events(request: HttpRequest, permission: Permission | None = None) -> HttpResponseBase:
    """Answer with the states of tasks, and, as Server-Sent Events, with each change.

    The tasks are named by ``?token=`` (see ``sign()``; several times for several), or, where the site gives a
    ``permission`` function, by ``?id=``. Under WSGI, and where the client asks for JSON, one snapshot
    answers.
    """
    if request.method not in ("GET", "HEAD"):
        return HttpResponseNotAllowed(["GET", "HEAD"])
    try:
        wanted = await find_wanted(request, permission)
        states = await look_up(wanted)
        if not any(shown.is_there for shown in states.values()):
            raise Refused(HTTPStatus.NOT_FOUND, "There is no such task.")
        response = _respond(request, wanted, {each: states[each] for each in wanted})
    except Refused as refused:
        response = refused.response()
    except utils.Error as error:
        if not is_transient(error):
            raise
        response = Refused(HTTPStatus.SERVICE_UNAVAILABLE, "The database is away.").response()
        response["Retry-After"] = str(POLL_INTERVAL)
    response["Cache-Control"] = "no-store, no-transform"
    patch_vary_headers(response, ["Accept", "Cookie"])
    return response


# ATOMIC_REQUESTS can't be had with async views, and this one only reads.
for _alias in connections:
    events = transaction.non_atomic_requests(using=_alias)(events)


def _respond(request: HttpRequest, wanted: list[Wanted], states: dict[Wanted, Shown]) -> HttpResponseBase:
    is_final = all(shown.is_final for shown in states.values())
    if not _wants_stream(request):
        response = HttpResponse(states_json(states.values()), content_type=JSON)
        if not is_final:
            response["Retry-After"] = str(POLL_INTERVAL)
        return response
    cursor = Cursor(wanted, request.headers.get("Last-Event-ID"))
    if is_final and not Cursor(wanted, str(cursor)).news(states):
        return HttpResponse(status=HTTPStatus.NO_CONTENT)  # an EventSource doesn't come back then
    streaming = StreamingHttpResponse(stream(wanted, states, cursor), content_type=EVENT_STREAM)
    streaming["X-Accel-Buffering"] = "no"  # nginx
    streaming["Content-Encoding"] = "identity"  # GZipMiddleware leaves it alone
    return streaming


def _wants_stream(request: HttpRequest) -> bool:
    return (
        isinstance(request, ASGIRequest)
        and request.method == "GET"
        and request.get_preferred_type([EVENT_STREAM, JSON]) == EVENT_STREAM
    )
