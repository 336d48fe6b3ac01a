"""A site of each rival under django.tasks.

AIOTASKS_BENCH_RIVAL names its app, AIOTASKS_BENCH_DSN the database. AIOTASKS_BENCH_DJ_QUEUE_WORKERS is JSON:
dj-queue's option of that name, instead of its default.
"""

import json
import os
from typing import Any

from . import settings

_TASKS: dict[str, dict[str, Any]] = {
    "django_tasks_db": {"BACKEND": "django_tasks_db.DatabaseBackend"},
    "django_ox": {"BACKEND": "django_ox.backend.OxBackend"},
    "dj_queue": {"BACKEND": "dj_queue.backend.DjQueueBackend"},
}
if workers := os.environ.get("AIOTASKS_BENCH_DJ_QUEUE_WORKERS"):
    _TASKS["dj_queue"]["OPTIONS"] = {"workers": json.loads(workers)}

_app = os.environ["AIOTASKS_BENCH_RIVAL"]

SECRET_KEY = "benchmarks"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [_app, "benchmarks"]
# With Django's default two of them connect anew for each task, and run a hundred a second.
DATABASES = {"default": settings.DATABASES["default"] | {"CONN_MAX_AGE": None}}
TASKS = {"default": _TASKS[_app]}
