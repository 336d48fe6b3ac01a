"""The site of aiotasks and of the floor: the default options, on the database that is measured."""

import os
from urllib.parse import urlsplit

_dsn = urlsplit(os.environ["AIOTASKS_BENCH_DSN"])

SECRET_KEY = "benchmarks"
USE_TZ = True
INSTALLED_APPS = ["aiotasks", "benchmarks"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": _dsn.hostname,
        "PORT": _dsn.port,
        "USER": _dsn.username,
        "NAME": _dsn.path.lstrip("/"),
    }
}
TASKS = {"default": {"BACKEND": "aiotasks.backend.PostgresBackend"}}
