"""Check ``autovacuum``: it runs, and the tables have the storage parameters that a queue needs."""

from collections.abc import Iterable, Mapping

from .examination import Examination
from .finding import Result

__all__ = ["STORAGE", "check", "judge_storage"]

# The parameters that the migrations give the tables.
STORAGE = {
    "aiotasks_task": {
        "fillfactor": "70",
        "autovacuum_vacuum_scale_factor": "0.01",
        "autovacuum_vacuum_threshold": "5000",
        "autovacuum_vacuum_insert_scale_factor": "0.05",
        "autovacuum_analyze_scale_factor": "0.02",
        "autovacuum_vacuum_cost_delay": "0",
    },
    "aiotasks_worker": {"fillfactor": "50", "autovacuum_vacuum_threshold": "500"},
    "aiotasks_limit": {
        "fillfactor": "50",
        "autovacuum_vacuum_scale_factor": "0.02",
        "autovacuum_vacuum_threshold": "500",
        "autovacuum_vacuum_cost_delay": "0",
    },
    "aiotasks_schedule": {},
}


async def check(examination: Examination) -> Result:
    """Return whether autovacuum runs, with the storage parameters that a queue needs."""
    if not examination.server.vacuums:
        return (
            "error",
            "autovacuum or track_counts is off: dead rows accumulate, and claims get slower and slower.",
            "Set both to on in postgresql.conf and reload it.",
        )
    return judge_storage(await examination.store.select_storage())


def judge_storage(found: Mapping[str, Iterable[str]]) -> Result:
    """Return the result for the tables' storage parameters, each as ``name=value``."""
    tables = {
        table: dict(parameter.split("=", 1) for parameter in parameters)
        for table, parameters in found.items()
    }
    if tables.keys() != STORAGE.keys():
        return "not checked", "The tables are missing.", ""
    for table, parameters in tables.items():
        if parameters.get("autovacuum_enabled", "on").lower() not in ("on", "true", "yes", "1"):
            return (
                "error",
                f"autovacuum is off for {table}: dead rows accumulate, and claims get slower and slower.",
                f"ALTER TABLE {table} RESET (autovacuum_enabled)",
            )
    # A parameter that has another value was set on purpose.
    missing = {table: STORAGE[table].keys() - parameters.keys() for table, parameters in tables.items()}
    if any(missing.values()):
        remedies = [
            f"ALTER TABLE {table} SET ({_parameters(table, names)})"
            for table, names in sorted(missing.items())
            if names
        ]
        names_missing = ", ".join(sorted(set().union(*missing.values())))
        return (
            "warning",
            f"Storage parameters that a queue needs are missing: {names_missing}.",
            "; ".join(remedies),
        )
    return "ok", "It is on, and the tables have the parameters that a queue needs.", ""


def _parameters(table: str, names: Iterable[str]) -> str:
    return ", ".join(f"{name} = {STORAGE[table][name]}" for name in sorted(names))
