"""The demo's site, with a worker in its lifespan."""

import os
from importlib import import_module

from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application

from aiotasks.asgi import with_worker

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "aiotasks.demo.settings")

site = get_asgi_application()
import_module("aiotasks.demo.urls")  # the first request would hold up the worker's event loop with it

application = with_worker(
    ASGIStaticFilesHandler(site),
    concurrency=20,
    threads=4,
    grace=0.5,  # so little that Ctrl-C doesn't wait for the surveys
)
