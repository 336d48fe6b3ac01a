"""The site with a second queue."""

from .settings import *  # noqa: F403
from .settings import TASKS

TASKS["default"]["QUEUES"] = ["default", "flood"]
