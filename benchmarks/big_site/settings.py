"""The site for its workers: of all queues, and with results that are kept, so that it keeps its size."""

from ..settings import *  # noqa: F403

TASKS = {
    "default": {
        "BACKEND": "aiotasks.backend.PostgresBackend",
        "QUEUES": [],
        "OPTIONS": {"KEEP_SUCCESSFUL": None, "KEEP_FAILED": None},
    }
}
