"""Outage: what a loop that needs the database does while it cannot have it."""

import logging
import time
from typing import Protocol

from .errors import is_transient
from .retry import backoff

__all__ = ["Observer", "Outage"]


class Observer(Protocol):
    """Gets the begin and the end of each outage, on the loop's thread."""

    def outage_began(self, part: str, error: Exception) -> None: ...
    def outage_ended(self, part: str, seconds: float) -> None: ...


class Outage:
    """Counts the failures in a row of one loop. Used from the loop's thread alone.

    The first failure is logged: as a warning, or as an error if waiting may not help. The success after it is
    logged, too, with the length of the outage. The failures in between are not.

    part: the loop, in a word or two.
    effect: what waits meanwhile; the rest of the sentence "Outage began: …".
    longest: the longest pause between two tries, in seconds.
    """

    def __init__(
        self,
        logger: logging.Logger,
        part: str,
        effect: str,
        *,
        longest: float = 5.0,
        observer: Observer | None = None,
    ) -> None:
        self.failures = 0
        self._logger = logger
        self._part = part
        self._effect = effect
        self._longest = longest
        self._observer = observer
        self._began = 0.0  # by time.monotonic()

    def failed(self, error: Exception, reason: str | None = None) -> float:
        """Note a failed try; returns the seconds to wait before the next one.

        ``reason`` is logged in place of the error's own text.
        """
        self.failures += 1
        if self.failures == 1:
            self._began = time.monotonic()
            self._logger.log(
                logging.WARNING if is_transient(error) else logging.ERROR,
                "Outage began: %s part=%r error=%r",
                self._effect,
                self._part,
                reason or str(error),
            )
            if self._observer is not None:
                self._observer.outage_began(self._part, error)
        return backoff(self.failures, longest=self._longest)

    def ended(self) -> None:
        """Note a try that succeeded. It costs nothing where the one before it succeeded, too."""
        if self.failures:
            seconds = time.monotonic() - self._began
            self._logger.info(
                "Outage ended part=%r seconds=%.1f failures=%d", self._part, seconds, self.failures
            )
            self.failures = 0
            if self._observer is not None:
                self._observer.outage_ended(self._part, seconds)
