"""Times ahead, as people write them at the command line."""

from argparse import ArgumentTypeError
from datetime import datetime

from django.utils import timezone

from aiotasks.operations.filters import read_age, read_time

__all__ = ["AHEAD", "time_ahead"]

# For the help of an option.
AHEAD = "such as 2026-11-29T14:00, or 5m for five minutes from now"


def time_ahead(text: str) -> datetime:
    """Read a time, in the current time zone where it has none, or an age from now on: a type for argparse."""
    try:
        age = read_age(text)
        return read_time("it", text) if age is None else timezone.now() + age
    except OverflowError:
        raise ArgumentTypeError(f"{text!r} is too far ahead") from None
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None
