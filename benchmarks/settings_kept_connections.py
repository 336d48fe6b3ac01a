"""The site with connections that Django keeps for ten minutes."""

from .settings import *  # noqa: F403
from .settings import DATABASES

DATABASES["default"]["CONN_MAX_AGE"] = 600
