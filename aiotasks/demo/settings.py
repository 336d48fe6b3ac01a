"""The settings of the demo's site: another site needs only INSTALLED_APPS and TASKS of them."""

import os

from django.core.management.utils import get_random_secret_key
from django.utils.csp import CSP

SECRET_KEY = get_random_secret_key()
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
ROOT_URLCONF = "aiotasks.demo.urls"
TIME_ZONE = "UTC"

INSTALLED_APPS = ["aiotasks", "aiotasks.demo", "django.contrib.staticfiles"]
STATIC_URL = "static/"

MIDDLEWARE = [
    "django.middleware.csp.ContentSecurityPolicyMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
]

# Cookies are shared by all ports of a host: not with another site that is being developed there.
CSRF_COOKIE_NAME = "aiotasks_demo_csrftoken"

# The strictest that a page with a script, a stylesheet and forms of its own can have.
SECURE_CSP = {
    "default-src": [CSP.NONE],
    "script-src": [CSP.SELF],
    "style-src": [CSP.SELF],
    "img-src": [CSP.SELF],
    "connect-src": [CSP.SELF],
    "form-action": [CSP.SELF],
    "base-uri": [CSP.NONE],
    "frame-ancestors": [CSP.NONE],
}

TASKS = {
    "default": {
        "BACKEND": "aiotasks.backend.PostgresBackend",
        "QUEUES": ["surveys", "sources", "pages"],
    },
}

# The demo starts a PostgreSQL of its own, and sets these variables to its address.
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": "postgres",
        "HOST": os.environ.get("AIOTASKS_DEMO_HOST", "127.0.0.1"),
        "PORT": os.environ.get("AIOTASKS_DEMO_PORT", "5432"),
        "USER": os.environ.get("AIOTASKS_DEMO_USER", "postgres"),
    },
}

TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]

# By rich, because it prints a warning above the progress bar and not through it.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {
        "console": {
            "class": "rich.logging.RichHandler",
            "show_path": False,
            "show_time": False,
        }
    },
    "root": {"handlers": ["console"], "level": "WARNING"},
    "loggers": {
        "django": {"level": "WARNING"},
        # Tasks that fail are listed at the end.
        "django.tasks": {"level": "CRITICAL"},
        "aiotasks.tasks": {"level": "CRITICAL"},
    },
}
