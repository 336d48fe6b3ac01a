"""Settings of the sites that tests look at with a browser: the workers', strict, and with middleware."""

from django.utils.csp import CSP

from tests.worker.settings import *  # noqa: F403

INSTALLED_APPS = ["aiotasks", "django.contrib.staticfiles"]
STATIC_URL = "/static/"
ROOT_URLCONF = "tests.web.site"
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.csp.ContentSecurityPolicyMiddleware",
    "django.middleware.gzip.GZipMiddleware",
    "tests.web.site.queries_before_each_view",
    "tests.web.site.user_of_header",
]
SECURE_CSP = {"default-src": [CSP.SELF]}
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {"context_processors": ["django.template.context_processors.request"]},
    }
]
