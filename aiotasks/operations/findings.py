"""What ``check`` finds: verdicts, each with a sentence and a remedy."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Result", "Verdict"]

# Worst last, but for what couldn't be looked at because of something before it.
type Verdict = Literal["ok", "warning", "error", "not checked"]

# With the sentence and the remedy: a Finding, but for the check's name.
type Result = tuple[Verdict, str, str]


@dataclass(frozen=True, slots=True)
class Finding:
    """``remedy`` is empty where nothing is to be done."""

    name: str
    verdict: Verdict
    message: str
    remedy: str = ""
