"""The site with queues of any name."""

from .settings import *  # noqa: F403
from .settings import TASKS

TASKS["default"]["QUEUES"] = []
