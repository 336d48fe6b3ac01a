"""Settings of the site with health endpoints: no middleware that asks a database."""

from tests.worker.settings import *  # noqa: F403

ROOT_URLCONF = "tests.web.health_site"
