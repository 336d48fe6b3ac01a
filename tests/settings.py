"""Settings of the test run and of the processes that it starts; AIOTASKS_DB_* name their database."""

import os

SECRET_KEY = "for tests only"
USE_TZ = True
INSTALLED_APPS = ["aiotasks"]

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        # In the test run itself, conftest.py fills these in once its server has started.
        "HOST": os.environ.get("AIOTASKS_DB_HOST", ""),
        "PORT": os.environ.get("AIOTASKS_DB_PORT", ""),
        "USER": os.environ.get("AIOTASKS_DB_USER", ""),
        "PASSWORD": os.environ.get("AIOTASKS_DB_PASSWORD", ""),
        "NAME": os.environ.get("AIOTASKS_DB_NAME", "aiotasks"),
    }
}

TASKS = {"default": {"BACKEND": "aiotasks.backend.PostgresBackend", "QUEUES": [], "OPTIONS": {}}}
