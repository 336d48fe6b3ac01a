"""Settings of the workers that the tests start: those of the run, with OPTIONS and QUEUES from the environment."""

import json
import os

from tests.settings import *  # noqa: F403

# async_to_sync and the ORM of the tasks need no other tables than ours.
TASKS = {
    "default": {
        "BACKEND": "aiotasks.backend.PostgresBackend",
        "QUEUES": json.loads(os.environ.get("TEST_QUEUES", "[]")),
        "OPTIONS": json.loads(os.environ.get("TEST_OPTIONS", "{}")),
    },
    "dummy": {"BACKEND": "django.tasks.backends.dummy.DummyBackend"},
}
ROOT_URLCONF = "tests.worker.site"
ALLOWED_HOSTS = ["*"]
