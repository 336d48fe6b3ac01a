"""Settings of the workers that tests start: the run's, with OPTIONS and QUEUES from the environment."""

import json
import os

from tests.settings import *  # noqa: F403

TASKS = {
    "default": {
        "BACKEND": "aiotasks.backend.PostgresBackend",
        "QUEUES": json.loads(os.environ.get("TEST_QUEUES", "[]")),
        "OPTIONS": json.loads(os.environ.get("TEST_OPTIONS", "{}")),
    },
    "dummy": {"BACKEND": "django.tasks.backends.dummy.DummyBackend"},
}
# For servers in front of others: connection OPTIONS, and a second alias that goes past a pooler.
DATABASES["default"]["OPTIONS"] = json.loads(os.environ.get("TEST_DB_OPTIONS", "{}"))  # noqa: F405
if port := os.environ.get("TEST_DIRECT_PORT"):
    DATABASES["direct"] = {**DATABASES["default"], "PORT": port}  # noqa: F405
USE_TZ = os.environ.get("TEST_USE_TZ") != "0"
ROOT_URLCONF = "tests.worker.site"
ALLOWED_HOSTS = ["*"]
