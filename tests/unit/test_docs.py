"""The pages of docs/ and the other Markdown files: links, file names and statements that they name exist."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiotasks.store.statements import load
from tests.conftest import ROOT

HOME = "https://github.com/aiotasks/django-aiotasks/blob/main/"
RAW = "https://raw.githubusercontent.com/aiotasks/django-aiotasks/main/"

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
QUERIES = ROOT / "aiotasks/store/queries"

# In their order, so that a code span with a bracket isn't read as a link.
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_PATH = re.compile(r"`((?:aiotasks|tests|benchmarks|docs|requirements)/[\w./*-]*)(?:::(\w+))?`")
_STATEMENT = re.compile(r"\b([a-z_]+)\.sql\b")


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text("utf-8"))


def anchors(page: Path) -> Iterator[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        yield re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(prose(page)):
        path, _, anchor = link.removeprefix(HOME).removeprefix(RAW).partition("#")
        if "://" in path:
            continue
        start = ROOT if link.startswith((HOME, RAW)) else page.parent
        target = (start / path).resolve() if path else page
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in set(anchors(target)), f"{link}: the page has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    for path, function in _PATH.findall(text):
        assert list(ROOT.glob(path)), f"{path} isn't there"
        assert not function or f"def {function}(" in (ROOT / path).read_text("utf-8"), (
            f"{path} has no {function}"
        )
    for name in _STATEMENT.findall(text):
        assert (QUERIES / f"{name}.sql").exists(), f"{name}.sql isn't there"


def test_the_state_machine_has_every_statement_that_changes_a_status() -> None:
    page = (ROOT / "docs/internals/overview.md").read_text("utf-8")
    (diagram,) = re.findall(r"^stateDiagram-v2\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    changing = re.compile(r"INSERT INTO aiotasks_task\b|DELETE FROM aiotasks_task\b|SET status\b")
    found = {path.stem for path in QUERIES.glob("*.sql") if changing.search(load(path.stem).sql)}
    assert set(_STATEMENT.findall(diagram)) == found


def test_every_module_is_on_the_page_of_its_subsystem() -> None:
    pages = "".join(page.read_text("utf-8") for page in (ROOT / "docs/internals").glob("*.md"))
    modules = [
        str(path.relative_to(ROOT))
        for package in ("db", "logs", "operations", "schedules", "store", "testing", "web", "worker")
        for path in (ROOT / "aiotasks" / package).rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    ]
    assert [module for module in modules if f"`{module}`" not in pages] == []


def test_the_layers_are_those_that_import_linter_checks() -> None:
    page = (ROOT / "docs/internals/overview.md").read_text("utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    layers = next(one["layers"] for one in contracts if one["type"] == "layers")
    section = page.partition("## Imports point down\n")[2].partition(". ")[0]
    assert " ".join(section.split()) == " → ".join(
        re.sub(r"[()]", "", layer).replace(" | ", ", ") for layer in layers
    )


def test_readme_is_a_landing_page_whose_links_work_on_pypi() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 150
    assert [link for link in _LINK.findall(text) if "://" not in link] == []


def test_every_page_is_linked() -> None:
    links = [(page, link) for page in PAGES for link in _LINK.findall(prose(page))]
    linked = {(page.parent / link.partition("#")[0]).resolve() for page, link in links}
    assert {ROOT / "docs/index.md", *linked} >= set((ROOT / "docs").rglob("*.md"))
