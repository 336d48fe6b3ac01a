"""The result of a check: a verdict, with a sentence and a remedy."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Result", "Verdict"]

# From good to bad; "not checked" where an earlier check has failed, or a right is missing.
type Verdict = Literal["ok", "warning", "error", "not checked"]

# The verdict, the sentence and the remedy: a Finding without the check's name.
type Result = tuple[Verdict, str, str]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of ``check``. ``remedy`` is empty where nothing is to be done."""

    name: str
    verdict: Verdict
    message: str
    remedy: str = ""
