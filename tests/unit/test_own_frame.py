"""Which frame of a traceback is the site's own, and what an error says in one line."""

import json
import os
import sys
import tracemalloc
from pathlib import Path

import pytest

import aiotasks
from aiotasks.logs.failures import _FRAME, indented, last_words, own_frame

SITE = "/srv/shop-site"
LIBRARY = "/srv/venv/lib/python3.13/site-packages"


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [SITE, LIBRARY, *sys.path])


def traceback(*frames: tuple[str, int, str]) -> str:
    text = "".join(f'  File "{path}", line {line}, in {name}\n    code()\n' for path, line, name in frames)
    return f"Traceback (most recent call last):\n{text}ValueError: no such card\n"


RUNNER = (f"{Path(aiotasks.__file__).parent}/worker/running/runner.py", 10, "_outcome")
TASK = (f"{SITE}/shop/tasks.py", 20, "charge")
CARDS = (f"{SITE}/shop/cards.py", 41, "find")
DJANGO = (f"{LIBRARY}/django/db/models/query.py", 633, "get")
JSON = (json.__file__, 352, "loads")


@pytest.mark.parametrize(
    ("frames", "frame"),
    [
        ([RUNNER, TASK, CARDS], "shop/cards.py:41 in find"),
        ([RUNNER, TASK, CARDS, DJANGO, JSON], "shop/cards.py:41 in find"),
        ([RUNNER, TASK, ("<string>", 2, "__init__")], "shop/tasks.py:20 in charge"),
        ([RUNNER, DJANGO], "django/db/models/query.py:633 in get"),  # none is the site's
        ([("/elsewhere/x.py", 1, "f")], "/elsewhere/x.py:1 in f"),
        ([], None),
    ],
)
def test_it_is_the_last_of_the_sites_code(frames: list[tuple[str, int, str]], frame: str | None) -> None:
    assert own_frame(traceback(*frames), "shop.tasks.charge") == frame


def test_a_site_that_is_installed_as_a_package() -> None:
    installed = (f"{LIBRARY}/shop/tasks.py", 7, "charge")
    assert own_frame(traceback(RUNNER, installed, DJANGO), "shop.tasks.charge") == "shop/tasks.py:7 in charge"


def test_entries_of_the_path_that_are_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [Path(SITE), b"/srv", None, *sys.path])
    assert own_frame(traceback(TASK), "shop.tasks.charge") == "shop/tasks.py:20 in charge"


def test_frames_of_a_group() -> None:
    text = (
        "  + Exception Group Traceback (most recent call last):\n"
        f'  |   File "{TASK[0]}", line 20, in charge\n  |     raise group\n'
        "  | ExceptionGroup: several (2 sub-exceptions)\n"
    )
    assert own_frame(text, "shop.tasks.charge") == "shop/tasks.py:20 in charge"


def test_blank_lines_are_no_part_of_a_frame() -> None:
    """Each would be tried as the beginning of all that follow: for seconds, and of these for days."""
    blank = "\n \n\t\n | \n"
    match = _FRAME.search(f'{blank}  File "{CARDS[0]}", line 41, in find\n')
    assert match is not None
    assert match.start() == len(blank)
    assert _FRAME.search(blank + "File") is None
    text = traceback(TASK) + blank * 500_000
    assert own_frame(text, "shop.tasks.charge") == "shop/tasks.py:20 in charge"


def test_nothing_is_kept_of_paths() -> None:
    """Errors may quote as many, and as long ones, as somebody likes."""
    own_frame(traceback(CARDS), "shop.tasks.charge")
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(500):
            own_frame(traceback((f"{SITE}/{'x' * 10_000}/{number}.py", 1, "f")), "shop.tasks.charge")
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 1_000_000


def test_a_name_can_forge_no_line() -> None:
    assert own_frame(traceback((f"{SITE}/\x1b[31m.py", 1, "f")), "shop.tasks.x") == "\\x1b[31m.py:1 in f"


def test_last_words() -> None:
    assert last_words("builtins.ValueError", traceback(TASK)) == "ValueError: no such card"
    assert last_words("shop.NoCard", "Traceback\n  x\nshop.NoCard: a\nb\n") == "shop.NoCard: a\nb"
    assert last_words("a.Late", "a.Late: never raised\n") == "a.Late: never raised"
    assert len(last_words("a.Long", f"a.Long: {'x' * 5000}")) == 1000


def test_no_line_of_a_traceback_looks_like_a_record() -> None:
    text = indented("ValueError: one\n2026-01-01 ERROR aiotasks.tasks: two\x1b[2J\n")
    assert text == "  ValueError: one\n  2026-01-01 ERROR aiotasks.tasks: two\\x1b[2J"
    assert os.linesep not in text.split("\n")[0]
