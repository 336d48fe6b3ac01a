"""Progress of a running task: how much of its work is done, how fast, and how long the rest takes."""

import math
from numbers import Integral
from typing import Any

__all__ = ["KEY", "Meter", "Report"]

# The key of the metadata.
KEY = "progress"

_BIG = 2**63

# Characters of a message; the rest is cut. A noted one is checked against the limit of all metadata only when
# the body can't be told any more.
MAX_MESSAGE = 1000

# Seconds after which what was measured counts for a third. Chosen: the rate follows a change of speed within
# half a minute, and doesn't jump with single steps that take seconds.
MEMORY = 30.0


# One call of ``context.progress()``: done, total, message, and when it was by ``time.monotonic()``.
type Report = tuple[Any, Any, Any, float]


class Meter:
    """Makes metadata of the reports of one attempt.

    The rate is that of the work since the first report, of which the latest counts most: a task that goes on
    where an earlier attempt has ended may begin with any number.
    """

    __slots__ = ("_at", "_done", "_seconds", "_steps")

    def __init__(self) -> None:
        self._done: float | None = None  # at the last report
        self._at = 0.0
        self._steps = 0.0  # weighted, as _seconds
        self._seconds = 0.0

    def show(self, report: Report) -> dict[str, Any]:
        """Return the metadata for a report: ``done``, ``total``, ``message``, ``rate`` (of done, in a second)
        and ``eta`` (seconds); the last two are None where they can't be known.

        Raises TypeError or ValueError for what isn't a number, or isn't finite; then nothing is measured.
        """
        done, total, message, at = report
        done = _number(done, "done")
        total = None if total is None else _number(total, "total")
        if not isinstance(message, str):
            raise TypeError(f"message must be a string, not {message!r:.100}.")
        self._measure(done, at)
        rate = self._steps / self._seconds if self._seconds > 0 else 0.0
        eta = max(0.0, float(total) - float(done)) / rate if total is not None and rate > 0 else None
        return {
            "done": done,
            "total": total,
            "message": str.__str__(message)[:MAX_MESSAGE],
            "rate": _rounded(rate if rate > 0 else None),
            "eta": _rounded(eta),
        }

    def _measure(self, done: float, at: float) -> None:
        if self._done is None or done < self._done:  # it begins, perhaps with other work
            self._steps = self._seconds = 0.0
        else:
            passed = at - self._at
            fades_to = math.exp(-passed / MEMORY)
            self._steps = self._steps * fades_to + (float(done) - float(self._done))
            self._seconds = self._seconds * fades_to + passed
        self._done, self._at = done, at


def _number(value: Any, name: str) -> float:
    """The number as JSON has it. Decimal, Fraction and the numbers of NumPy are accepted."""
    if type(value) is int and -_BIG < value < _BIG:
        return value
    try:
        number = int(value) if isinstance(value, Integral) else float(value)
        if isinstance(value, str | bytes | bytearray):
            raise TypeError
        is_finite = math.isfinite(number)
    except OverflowError:
        is_finite = False
    except Exception:  # whatever __float__() raises  # noqa: BLE001
        raise TypeError(f"{name} must be a number, not {value!r:.100}.") from None
    if not is_finite:
        raise ValueError(f"{name} must be a finite number, not {value!r:.100}.")
    return number


def _rounded(value: float | None) -> float | None:
    """The value to four digits; None for one beyond all floats."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.4g}")
