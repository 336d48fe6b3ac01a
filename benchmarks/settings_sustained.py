"""The site that deletes successful tasks soon."""

import os

from .settings import *  # noqa: F403
from .settings import TASKS

TASKS["default"]["OPTIONS"] = {"KEEP_SUCCESSFUL": float(os.environ["AIOTASKS_BENCH_KEEP"])}
