"""The worker: claims jobs, runs them on the loop or in threads, and writes what came of them."""

from .worker import Worker

__all__ = ["Worker"]
