"""The tables of docs/reference/: they name all that the code has, and nothing else."""

import argparse
import re
from dataclasses import fields

from aiotasks import exceptions
from aiotasks.conf import Options
from aiotasks.models import Task, Worker
from aiotasks.operations.check import CHECKS
from aiotasks.policies.policy import Policy, PolicyKeywords
from aiotasks.store.statements import load
from aiotasks.worker.process import cli
from tests.conftest import ROOT
from tests.unit.test_docs import QUERIES


def page(name: str) -> str:
    return (ROOT / "docs/reference" / f"{name}.md").read_text("utf-8")


def section(text: str, heading: str) -> str:
    return text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def first_cells(text: str) -> list[str]:
    """The code spans in the first cell of each row."""
    cells = re.findall(r"^\| (.*?) \|", text, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`(.+?)`", cell)]


def test_settings() -> None:
    options, _, policies = page("settings").partition("## Policies of a task")
    assert sorted(first_cells(options)) == sorted(field.name.upper() for field in fields(Options))
    keywords = set(PolicyKeywords.__annotations__)
    assert set(Policy._fields) <= set(first_cells(policies)) <= keywords


def test_options_of_the_worker() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    cli.add_arguments(parser)
    hidden = {"--supervised"}  # between a supervisor and its workers
    named = {action.option_strings[0] for action in parser._actions} - hidden
    table = section(page("cli"), "`aiotasks worker`").partition("### ")[0]
    assert {name.split()[0] for name in first_cells(table)} == named


def test_checks() -> None:
    text = page("checks")
    files = ("aiotasks/checks.py", "aiotasks/schedules/checks.py")
    source = "".join((ROOT / file).read_text("utf-8") for file in files)
    ids = set(re.findall(r'id="(aiotasks\.[EW]\d+)"', source))
    assert set(first_cells(section(text, "`manage.py check`"))) == ids
    assert first_cells(section(text, "`manage.py aiotasks check`")) == list(CHECKS)


def test_columns() -> None:
    text = page("tables")
    for model in (Task, Worker):
        table = section(text, f"`{model._meta.db_table}`")
        assert first_cells(table) == [field.column for field in model._meta.concrete_fields]


def test_the_query_for_claims() -> None:
    """docs/howto/scale.md looks for them in pg_stat_statements."""
    (start,) = re.findall(r"query LIKE '(.+)%'", (ROOT / "docs/howto/scale.md").read_text("utf-8"))
    found = {file.stem for file in QUERIES.glob("*.sql") if load(file.stem).sql.startswith(start)}
    assert found == {"claim_jobs", "claim_keyed", "claim_suspect"}


def test_exceptions() -> None:
    assert set(re.findall(r"[├└]── (?:aiotasks\.)?(\w+)", page("exceptions"))) == set(exceptions.__all__)
