"""How many file descriptors this process may still open."""

import os
from contextlib import ExitStack

__all__ = [
    "CONNECTION_DESCRIPTORS",
    "SPARE_DESCRIPTORS",
    "count_free_descriptors",
    "demand_descriptors",
]

# What must be free for another thread with a connection: two that libpq opens for it, and what the worker's
# own connections, files and sockets need meanwhile.
CONNECTION_DESCRIPTORS = 2
SPARE_DESCRIPTORS = 8


def demand_descriptors(number: int) -> None:
    """Raise OSError unless so many are free."""
    with ExitStack() as stack:
        for _ in range(number):
            stack.callback(os.close, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))


def count_free_descriptors(most: int) -> int:
    """Return how many are free, or ``most`` if there are more."""
    with ExitStack() as stack:
        for number in range(most):
            try:
                stack.callback(os.close, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            except OSError:
                return number
    return most
