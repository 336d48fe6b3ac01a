"""The demo's site, with a worker in its lifespan."""

import os

from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application

from aiotasks.asgi import with_worker

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "aiotasks.demo.settings")

application = with_worker(
    ASGIStaticFilesHandler(get_asgi_application()),
    concurrency=20,
    threads=4,
    grace=0.5,  # so little that Ctrl-C doesn't wait for the surveys
)
