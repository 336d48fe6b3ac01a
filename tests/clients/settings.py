"""A small site with packages that use Django's Tasks or observe them. AIOTASKS_DB_* name its database."""

import os
import tempfile

import sentry_sdk
from opentelemetry import trace
from opentelemetry.instrumentation.asyncpg import AsyncPGInstrumentor
from opentelemetry.instrumentation.django import DjangoInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from aiotasks.contrib.opentelemetry import AiotasksInstrumentor
from tests.clients import reports
from tests.settings import *  # noqa: F403

FOLDER = os.environ.setdefault("CLIENTS_FOLDER", tempfile.mkdtemp(prefix="clients-"))

STATIC_URL = "static/"
ROOT_URLCONF = "tests.clients.site.urls"
ALLOWED_HOSTS = ["*"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "tests.clients.site",
    "aiotasks",
    "crontask",
    "django_periodic_tasks",
    "django_structlog",
    "maintenance_tasks",
    "overseer",
    "wagtail.search",
    "wagtail.sites",
    "wagtail",
    "modelcluster",
    "taggit",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.postgres",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django_structlog.middlewares.RequestMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
CACHES = {
    name: {"BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": f"{FOLDER}/{name}"}
    for name in ("default", "django_structlog")
}
DJANGO_STRUCTLOG_DJANGO_TASKS_ENABLED = True
TASKS = {"default": {"BACKEND": "aiotasks.backend.PostgresBackend", "OPTIONS": {"POLL_INTERVAL": 0.5}}}
WAGTAIL_SITE_NAME = "clients"
WAGTAILADMIN_BASE_URL = "http://localhost"
WAGTAILSEARCH_BACKENDS = {"default": {"BACKEND": "modelsearch.backends.database"}}
MODELSEARCH_BACKENDS = WAGTAILSEARCH_BACKENDS

reports.configure_structlog(FOLDER)
sentry_sdk.init(
    dsn="https://key@localhost/1", before_send=reports.keep_event(FOLDER), default_integrations=True
)
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(reports.SpanFile(FOLDER)))
trace.set_tracer_provider(provider)
DjangoInstrumentor().instrument()
AsyncPGInstrumentor().instrument()
AiotasksInstrumentor().instrument()
