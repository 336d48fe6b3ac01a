"""What a survey of the modules finds: the extremes, and the tasks that failed."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypedDict

from django.tasks.base import TaskError

_PLACES = 3
_FAILURES_KEPT = 10


class Place(TypedDict):
    """One place of a ranking."""

    where: str
    value: float


class Findings(TypedDict):
    """JSON, to be kept in a task's metadata. `sum`: of the first ranking's values, over all modules."""

    tasks: int
    sum: float
    places: dict[str, list[Place]]  # by the title of their ranking
    failed: int
    failures: list[str]  # the first ones, a sentence each


class Ranking(NamedTuple):
    """How modules are ranked: by a value of what their tasks returned. `where` names the place found."""

    title: str
    unit: str
    value: Callable[[Any], float]
    where: Callable[[str, Any], str] = lambda module, found: module


SOURCES = (
    Ranking("longest modules", "lines", lambda found: found["lines"]),
    Ranking(
        "longest functions",
        "lines",
        lambda found: found["longest_function_lines"],
        lambda module, found: f"{module}: {found['longest_function']}",
    ),
    Ranking("most classes", "classes", lambda found: found["classes"]),
    Ranking("most imports", "imports", lambda found: found["imports"]),
    Ranking("deepest nesting", "levels", lambda found: found["nesting"]),
)

PAGES = (
    Ranking("largest pages", "kB", lambda page: page["bytes"] / 1000),
    Ranking("slowest pages", "ms", lambda page: page["seconds"] * 1000),
)


def no_findings() -> Findings:
    return Findings(tasks=0, sum=0.0, places={}, failed=0, failures=[])


def add(findings: Findings, rankings: Sequence[Ranking], module: str, found: Any) -> None:
    """Add what the task of a module has returned."""
    findings["tasks"] += 1
    findings["sum"] += rankings[0].value(found)
    for ranking in rankings:
        places = findings["places"].setdefault(ranking.title, [])
        places.append({"where": ranking.where(module, found), "value": ranking.value(found)})
        places.sort(key=lambda place: place["value"], reverse=True)
        del places[_PLACES:]


def add_failure(findings: Findings, task: str, module: str, error: TaskError) -> None:
    """Count a task that failed."""
    findings["tasks"] += 1
    findings["failed"] += 1
    if len(findings["failures"]) < _FAILURES_KEPT:
        findings["failures"].append(f"{task}({module!r}): {exception_of(error)}")


def exception_of(error: TaskError) -> str:
    """The exception of a task's error, without its traceback: its class and the first line of its message."""
    name = error.exception_class_path.removeprefix("builtins.")
    lines = error.traceback.strip().splitlines()
    return next((line for line in reversed(lines) if line.startswith(name)), lines[-1])
