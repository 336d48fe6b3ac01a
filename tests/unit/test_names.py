"""The names that modules give away, and what importing them needs."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import aiotasks

PACKAGE = Path(aiotasks.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if not {"demo", "migrations", "management"} & set(path.relative_to(PACKAGE).parts)
    and path.name not in ("__main__.py",)
)


def declared(module: str) -> list[str] | None:
    source = importlib.import_module(module).__file__
    for node in ast.parse(Path(str(source)).read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return list(ast.literal_eval(node.value))
    return None


@pytest.mark.parametrize("module", MODULES)
def test_what_a_module_gives_away_is_there_and_sorted(module: str) -> None:
    names = declared(module)
    if names is None:
        assert not [node for node in _definitions(module) if not node.startswith("_")], "it has no __all__"
        return
    # As ruff sorts them: constants, classes, the rest.
    assert names == sorted(
        names, key=lambda name: (0 if name.isupper() else 1 if name[0].isupper() else 2, name)
    )
    assert len(names) == len(set(names))
    found = importlib.import_module(module)
    for name in names:
        assert hasattr(found, name)


def _definitions(module: str) -> list[str]:
    tree = ast.parse(Path(str(importlib.import_module(module).__file__)).read_text("utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]


def test_the_public_names() -> None:
    assert set(aiotasks.__all__) >= {
        "AiotasksError",
        "DatabaseNotReady",
        "PostgresTask",
        "TransactionClosed",
        "UnknownTask",
        "Worker",
        "WorkerLost",
        "task",
        "transaction",
    }
    assert set(aiotasks._HOMES) == set(aiotasks.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = aiotasks.nothing


def test_importing_it_needs_neither_settings_nor_apps() -> None:
    code = (
        "import aiotasks, sys; print(aiotasks.__version__, aiotasks.UnknownTask.__name__);"
        "assert 'django.tasks' not in sys.modules; assert 'asyncpg' not in sys.modules"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, f"{aiotasks.__version__} UnknownTask\n", "")


MISTAKES = """
SECRET_KEY = "x"
INSTALLED_APPS = ["aiotasks"]
DATABASES = {"default": {
    "ENGINE": "django.db.backends.postgresql", "NAME": "x", "HOST": "127.0.0.1", "PORT": "1",
    "OPTIONS": {"keepalives_idle": 5},
}}
BACKEND = "aiotasks.backend.PostgresBackend"
TASKS = {
    "default": {"BACKEND": BACKEND, "QUEUES": "emails", "OPTIONS": {"LEASE_TIMEOUT": "30"}},
    "other": {"BACKEND": BACKEND, "OPTIONS": {"POLL": 1}},
    "third": {"BACKEND": BACKEND, "OPTIONS": {"DATABASE": "replica"}},
    "fourth": {"BACKEND": BACKEND},
}
"""


def test_mistakes_in_the_settings_are_told_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "mistaken.py").write_text(MISTAKES)
    run = subprocess.run(
        [sys.executable, "-m", "django", "check"],
        env={"PYTHONPATH": f"{PACKAGE.parent}:{tmp_path}", "DJANGO_SETTINGS_MODULE": "mistaken"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    for id in ("E002", "E003", "E005", "W001"):
        assert f"(aiotasks.{id})" in run.stderr, run.stderr
    for name in ("'LEASE_TIMEOUT'", "'POLL'", "'replica'", "'emails'", "'keepalives_idle'"):
        assert name in run.stderr
