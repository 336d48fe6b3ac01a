"""The site with the async ORM on one thread, as asgiref's thread-sensitive mode has it."""

from .settings import *  # noqa: F403
from .settings import TASKS

TASKS["default"]["OPTIONS"] = {"ASYNC_DB_THREADS": 1}
