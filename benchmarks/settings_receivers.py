"""The site with a receiver of ``task_finished``, and with Django's log of tasks in a file."""

import os

from .settings import *  # noqa: F403
from .settings import INSTALLED_APPS

INSTALLED_APPS += ["benchmarks.receivers"]
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"file": {"class": "logging.FileHandler", "filename": os.environ["AIOTASKS_BENCH_LOG"]}},
    "loggers": {"django.tasks": {"handlers": ["file"], "level": "INFO"}},
}
