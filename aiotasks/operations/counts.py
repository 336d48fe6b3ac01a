"""Numbers that operators see. Counting stops somewhere, so that it costs the same whatever the backlog."""

from dataclasses import dataclass

__all__ = ["COUNT_LIMIT", "Count"]

# Counting stops here, whatever is counted: what is more needs no exact number.
COUNT_LIMIT = 10_000


@dataclass(frozen=True, slots=True)
class Count:
    """A number of tasks; ``capped``: at least so many, because counting stopped there."""

    number: int
    capped: bool

    def __str__(self) -> str:
        return f"{self.number:,}{'+' if self.capped else ''}"
