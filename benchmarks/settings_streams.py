"""The site whose tasks browsers follow."""

from .settings import *  # noqa: F403

ROOT_URLCONF = "benchmarks.streams.urls"
ALLOWED_HOSTS = ["*"]
