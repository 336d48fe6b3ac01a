"""docs/reference/log-events.md: it lists every event that the package logs, and no other."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.conftest import ROOT

PACKAGE = ROOT / "aiotasks"
PAGE = ROOT / "docs/reference/log-events.md"

LEVELS = {"debug", "info", "warning", "error", "critical"}
NOT_FIXED = ""  # the logger, or the level, is chosen when the event is logged


class Event(NamedTuple):
    logger: str
    level: str
    message: str


def test_the_page_lists_the_events_of_the_code() -> None:
    code, page = set(logged()), set(listed())
    fixed = {event for event in code if NOT_FIXED not in event}
    assert sorted(fixed - page) == [], "they aren't on the page"
    messages = {event.message for event in page}
    assert sorted(event.message for event in code - fixed if event.message not in messages) == []
    known = {event.message for event in code - fixed}
    unknown = sorted(event for event in page - fixed if event.message not in known)
    assert unknown == [], "they aren't in the code"


def test_a_message_says_what_has_happened() -> None:
    """A fixed text, so that it is found by a search, and by an alert."""
    for event in logged():
        words = re.findall(r"[A-Za-z]+", re.sub(r"%[-+.\d]*\w|\w+=", "", event.message))
        assert words, event


def listed() -> Iterator[Event]:
    """The rows of the page's tables."""
    logger = ""
    for line in PAGE.read_text("utf-8").splitlines():
        if line.startswith("## "):
            logger = line.removeprefix("## ").strip("`")
        elif row := re.match(r"\| ([A-Z, ]+) \| `(.*?)` \| .+ \| .+ \|$", line):
            for level in row[1].split(", "):
                yield Event(logger, level, row[2])


def logged() -> Iterator[Event]:
    """The calls of loggers in the package."""
    trees = {
        path: ast.parse(path.read_text("utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
        if "demo" not in path.relative_to(PACKAGE).parts
    }
    constants = {name: text for tree in trees.values() for name, text in _constants(tree)}
    for path, tree in trees.items():
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                receiver = ast.unparse(call.func.value)
                if receiver.split(".")[-1].strip("_") == "logger":
                    name = _name_of_logger(tree) if receiver == "logger" else NOT_FIXED
                    yield from _event(path, call, name, constants)


def _event(path: Path, call: ast.Call, logger: str, constants: dict[str, str]) -> Iterator[Event]:
    assert isinstance(call.func, ast.Attribute)
    method = call.func.attr
    if method in LEVELS:
        level, text = method.upper(), call.args[0]
    elif method == "exception":
        level, text = "ERROR", call.args[0]
    elif method == "log":
        level, text = NOT_FIXED, call.args[1]
    else:
        return  # not a record: isEnabledFor, handlers, …
    if isinstance(text, ast.Name):
        message = constants[text.id]
    else:
        assert isinstance(text, ast.Constant), f"{path}:{call.lineno}: a message is a fixed text"
        message = str(text.value)
    yield Event(logger, level, message.split("\n")[0])  # stacks and reports follow in lines of their own


def _name_of_logger(tree: ast.Module) -> str:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "logger":
            assert isinstance(node.value, ast.Call)
            return str(ast.literal_eval(node.value.args[0]))
    return NOT_FIXED


def _constants(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            yield node.targets[0].id, node.value.value
