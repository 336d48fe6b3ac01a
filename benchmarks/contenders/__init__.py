"""Contenders: one module each, which all answer the same questions.

The modules import only what aiotasks itself needs at their top, as what they measure may not be installed.

``REQUIRES``: distributions and executables without which the contender counts as not installed.
``versions()``: of what is measured, by name.
``prepare()``: makes the schema in the database that ``AIOTASKS_BENCH_DSN`` names.
``WORKLOADS``: by name (``benchmarks/workloads.py``), a function of the number of tasks that returns
    figures: ``per_s``, ``seconds``, ``p50_ms``, … It raises ``MeasurementFailed`` rather than return
    a figure of anything but what was to be measured.
``STAGES`` (optional): by workload, a function of the number of tasks that adds the rows which the
    workload finds there; run once, before the first round.
``COUNTS`` (optional): by workload, the number of tasks that is enough for a steady rate where the
    workload's own would take many minutes.
"""

import importlib
import pkgutil
import shutil
from importlib import metadata
from types import ModuleType

__all__ = ["load", "missing", "names"]

_HELPERS = {"__main__", "common", "site"}


def names() -> list[str]:
    """Return the names of all contenders: aiotasks, the floor, the rivals."""
    found = {module.name for module in pkgutil.iter_modules(__path__)} - _HELPERS
    return sorted(found, key=lambda name: (name != "aiotasks", name != "floor", name))


def load(name: str) -> ModuleType:
    """Return a contender's module."""
    return importlib.import_module(f"{__name__}.{name}")


def missing(contender: ModuleType) -> list[str]:
    """Return what it requires and isn't installed here."""
    return [name for name in contender.REQUIRES if not _is_distribution(name) and not shutil.which(name)]


def _is_distribution(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True
