"""What sites put into LOGGING: handlers, filters and formatters that raise, are slow, or hang."""

import logging
import os
import threading
import time
from collections.abc import Sequence

from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend


class Raising(logging.Handler):
    """Raises out of ``emit``, as a handler without a try does when its server is away."""

    def emit(self, record: logging.LogRecord) -> None:
        raise ConnectionRefusedError("the log's server is away")


class RaisingFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        raise LookupError("a context variable isn't set")


class RaisingFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        raise KeyError("request_id")


class Hanging(logging.Handler):
    """Never returns from ``emit``."""

    def emit(self, record: logging.LogRecord) -> None:
        threading.Event().wait()


def raising_factory(*args: object, **kwargs: object) -> logging.LogRecord:
    raise AttributeError("no tenant")


class SlowMail(BaseEmailBackend):
    """Takes TEST_MAIL_TIME seconds for each mail, and writes a line of TEST_MAILS then."""

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        time.sleep(float(os.environ["TEST_MAIL_TIME"]))
        with open(os.environ["TEST_MAILS"], "a") as mails:
            mails.write("sent\n")
        return len(email_messages)
