"""docs/faults.md: every fault has its tests, and all of them exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
ROWS = re.findall(
    r"^\| (\d+) \| (.*) \| (.*) \|$", (ROOT / "docs/faults.md").read_text("utf-8"), re.MULTILINE
)
BATTERY = ROOT / "tests/faults/battery/runs.py"


def test_every_fault_is_listed() -> None:
    assert [int(number) for number, _, _ in ROWS] == list(range(1, 104))


@pytest.mark.parametrize(("number", "tests"), [(number, tests) for number, _, tests in ROWS])
def test_what_it_names_exists(number: str, tests: str) -> None:
    named = re.findall(r"`(tests/[^`]*)::(test_\w+)`", tests)
    for path, name in named:
        assert name in _functions(ROOT / path), f"{path} has no {name}"
    runs = re.findall(r"`battery: (\w+)`", tests)
    assert set(runs) <= _runs()
    assert named or runs or tests.startswith("No test"), "neither a test nor a reason"


def _functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def _runs() -> set[str]:
    """The first argument of every Run(...)."""
    calls = [node for node in ast.walk(ast.parse(BATTERY.read_text("utf-8"))) if isinstance(node, ast.Call)]
    return {str(ast.literal_eval(call.args[0])) for call in calls if ast.unparse(call.func) == "Run"}
