"""Medians, spreads, and ratios round by round: of two measurements in one round, a minute apart at most."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from .workloads import Target

__all__ = ["Ratio", "Spread", "ratio"]

type Figures = Mapping[str, float]


@dataclass(frozen=True)
class Spread:
    """What a number of rounds have given."""

    median: float
    min: float
    max: float
    lower_quartile: float
    upper_quartile: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        if len(values) == 1:
            return cls(*[*values] * 5)
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, min(values), max(values), lower, upper)


@dataclass(frozen=True)
class Ratio:
    """A target, what it was compared with (None: nothing), and the ratio's spread over the rounds."""

    target: Target
    reference: str | None
    spread: Spread

    @property
    def reached(self) -> bool:
        median, bound = self.spread.median, self.target.bound
        return median >= bound if self.target.at == "least" else median <= bound

    def as_dict(self) -> dict[str, object]:
        return {
            "figure": self.target.figure,
            f"at_{self.target.at}": self.target.bound,
            "of": self.reference,
            **asdict(self.spread),
            "reached": self.reached,
        }


def ratio(target: Target, rounds: Sequence[Mapping[str, Figures]]) -> Ratio | None:
    """Compare aiotasks' figures with the target's reference; None where none was measured.

    ``rounds`` have each contender's figures; a contender that failed in one round isn't in any.
    """
    ours = [figures["aiotasks"][target.figure] for figures in rounds if "aiotasks" in figures]
    if not ours:
        return None
    if not target.of:
        return Ratio(target, None, Spread.of(ours))
    references = {
        name: [figures[name][target.figure] for figures in rounds] for name in target.of if name in rounds[0]
    }
    if not references:
        return None
    best = max if target.at == "least" else min
    name = best(references, key=lambda name: statistics.median(references[name]))
    return Ratio(
        target, name, Spread.of([our / their for our, their in zip(ours, references[name], strict=True)])
    )
