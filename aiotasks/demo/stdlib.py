"""The demo's input: the source of the running Python's standard library, and its measures."""

import ast
import functools
import sys
import sysconfig
from pathlib import Path
from typing import TypedDict

# Tests aren't part of the library, and some of their data isn't valid Python.
_TESTS = {"idle_test", "test", "tests"}

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_IMPORTS = (ast.Import, ast.ImportFrom)
_BLOCKS = (
    *_FUNCTIONS,
    ast.ClassDef,
    ast.If,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.With,
    ast.AsyncWith,
    ast.Try,
    ast.TryStar,
    ast.Match,
)


class Measures(TypedDict):
    lines: int
    functions: int
    classes: int
    imports: int
    nesting: int
    longest_function: str
    longest_function_lines: int


@functools.cache
def sources() -> dict[str, Path]:
    """Every module of the standard library that is written in Python, submodules included, with its file."""
    root = Path(sysconfig.get_path("stdlib"))
    files: list[Path] = []
    for name in sys.stdlib_module_names:
        files += root.glob(f"{name}.py")
        files += root.glob(f"{name}/**/*.py")
    paths = (file.relative_to(root) for file in files)
    return dict(sorted((_module_name(path), root / path) for path in paths if _TESTS.isdisjoint(path.parts)))


def measure(source: bytes) -> Measures:
    """Count a module's lines, functions, classes and imports, and find how deep its blocks nest."""
    found = Measures(
        lines=len(source.splitlines()),
        functions=0,
        classes=0,
        imports=0,
        nesting=0,
        longest_function="",
        longest_function_lines=0,
    )
    # A stack instead of recursion: expressions may nest deeper than Python's own stack.
    stack: list[tuple[ast.AST, int]] = [(ast.parse(source), 0)]
    while stack:
        node, depth = stack.pop()
        found["nesting"] = max(found["nesting"], depth)
        found["classes"] += isinstance(node, ast.ClassDef)
        found["imports"] += isinstance(node, _IMPORTS)
        if isinstance(node, _FUNCTIONS):
            found["functions"] += 1
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > found["longest_function_lines"]:
                found["longest_function"] = node.name
                found["longest_function_lines"] = lines
        for child in ast.iter_child_nodes(node):
            deeper = isinstance(child, _BLOCKS) and not _is_elif(node, child)
            stack.append((child, depth + deeper))
    return found


def _module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _is_elif(parent: ast.AST, child: ast.AST) -> bool:
    # The tree has an `elif` as an `if` inside of the first one's `else`; only the column distinguishes them.
    return isinstance(parent, ast.If) and isinstance(child, ast.If) and parent.col_offset == child.col_offset
