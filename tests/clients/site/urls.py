"""One view that enqueues."""

from django.http import JsonResponse
from django.urls import path

from . import tasks


def enqueue(request):
    result = tasks.log.enqueue("from a view")
    return JsonResponse({"id": result.id})


urlpatterns = [path("enqueue/", enqueue)]
