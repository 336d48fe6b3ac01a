"""Settings of workers whose site has a LOGGING of its own: TEST_LOGGING, as JSON."""

import json
import os

from tests.worker.settings import *  # noqa: F403

LOGGING = json.loads(os.environ["TEST_LOGGING"])
LOGGING_CONFIG = json.loads(os.environ.get("TEST_LOGGING_CONFIG", '"logging.config.dictConfig"'))
EMAIL_BACKEND = "tests.worker.handlers.SlowMail"
ADMINS = [("Ann", "ann@example.org")] if os.environ.get("TEST_ADMINS") == "pairs" else ["ann@example.org"]
