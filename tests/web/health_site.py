"""A site of health endpoints alone, with a worker: `uvicorn tests.web.health_site:application`."""

from django.core.asgi import get_asgi_application
from django.urls import include, path

from aiotasks.asgi import with_worker

urlpatterns = [path("", include("aiotasks.health_urls"))]

application = with_worker(get_asgi_application(), metrics=True)
