"""Reload: notices that the code of a site has changed, for ``--reload``.

It looks at every ``*.py`` below the folders that modules are imported from, Python's own and installed
packages aside. Not at loaded modules, as Django's autoreload: the supervisor loads none of the
site's, and one with a syntax error is loaded nowhere, but has to be seen when it is mended.
"""

import asyncio
import os
import site
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence

__all__ = ["Code", "code_folders"]

# Seconds between two looks; at least so many times what a look takes, where there are many files.
INTERVAL = 1.0
PACE = 20.0

# Seconds without a further change after which an editor, or git, is taken to be through.
SETTLED = 0.1

_SKIPPED = {"__pycache__", "node_modules", "site-packages", "dist-packages"}

type Files = dict[str, tuple[int, int]]


def code_folders() -> list[str]:
    """The folders of ``sys.path`` that aren't Python's or an installer's, sorted."""
    paths = sysconfig.get_paths()
    installed = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    installed += [*site.getsitepackages(), site.getusersitepackages()]
    others = tuple(os.path.realpath(path) + os.sep for path in installed)
    folders = {os.path.realpath(path) for path in sys.path if os.path.isdir(path or os.curdir)}
    # The root is where a process without a home stands; below it is the whole machine.
    return sorted(path for path in folders - {os.sep} if not f"{path}{os.sep}".startswith(others))


class Code:
    """The files below ``folders``, as they were when last looked at."""

    def __init__(self, folders: Sequence[str]) -> None:
        self._folders = folders
        self._files = self._look()

    async def change(self) -> str:
        """Return which file has changed, come or gone, of possibly several, once all keep still."""
        took = 0.0
        while True:
            await asyncio.sleep(max(INTERVAL, PACE * took))
            began = time.monotonic()
            files = await asyncio.to_thread(self._look)
            took = time.monotonic() - began
            if files != self._files:
                break
        before = self._files
        while files != self._files:
            self._files = files
            await asyncio.sleep(SETTLED)
            files = await asyncio.to_thread(self._look)
        changed = sorted(path for path, _ in before.items() ^ files.items())
        return f"path={next(iter(changed), '')!r}"

    def _look(self) -> Files:
        return dict(_python_files(self._folders))


def _python_files(folders: Sequence[str]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Each file's path with its time of change and size."""
    waiting = list(folders)
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as found:
                entries = [entry for entry in found if not entry.name.startswith(".")]
        except OSError:  # gone meanwhile, or closed to us
            continue
        if folder not in folders and any(entry.name == "pyvenv.cfg" for entry in entries):
            continue
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    if entry.name not in _SKIPPED:
                        waiting.append(entry.path)
                elif entry.name.endswith(".py"):
                    status = entry.stat()
                    yield entry.path, (status.st_mtime_ns, status.st_size)
            except OSError:
                continue
