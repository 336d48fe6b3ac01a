"""The Python of the pages of docs/, for tests that run it."""

import ast
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from types import ModuleType
from typing import Any

from .conftest import ROOT

__all__ = ["Example", "example"]

_numbers = count()
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Example(ModuleType):
    """A module of which a page's blocks are the text, in their order; ``blocks`` are those not run yet."""

    def __init__(self, page: str, name: str) -> None:
        super().__init__(name)
        self.page = page
        self.blocks = _BLOCK.findall((ROOT / "docs" / page).read_text("utf-8"))
        assert self.blocks, f"{page} has no Python"

    async def run(self, **names: Any) -> None:
        """Run the next block with these names beside its own; it may await at its top level."""
        self.__dict__.update(names)
        code = compile(self.blocks.pop(0), self.page, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        ended = eval(code, self.__dict__)
        if inspect.isawaitable(ended):
            await ended


@contextmanager
def example(page: str) -> Iterator[Example]:
    """Make the Example of ``page`` (below docs/) a module that can be imported, by a name of its own."""
    name = f"example_{next(_numbers)}"  # the registry remembers tasks by their paths
    sys.modules[name] = module = Example(page, name)
    try:
        yield module
    finally:
        del sys.modules[name]
