"""A site with the default options; AIOTASKS_BENCH_PORT names its server's port."""

import os

SECRET_KEY = "benchmarks"
USE_TZ = True
INSTALLED_APPS = ["aiotasks"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": "127.0.0.1",
        "PORT": os.environ.get("AIOTASKS_BENCH_PORT", ""),
        "USER": "postgres",
        "NAME": "postgres",
    }
}
TASKS = {"default": {"BACKEND": "aiotasks.backend.PostgresBackend"}}
