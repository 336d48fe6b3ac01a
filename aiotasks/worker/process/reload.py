"""Reload: notices that the code of a site has changed, for ``--reload``.

It checks every ``*.py`` below the folders that modules are imported from, Python's own and installed
packages aside. It doesn't check loaded modules, as Django's autoreload does: the supervisor loads none of the
site's, and a module with a syntax error is loaded nowhere;  its fix must be noticed.
"""

import asyncio
import os
import site
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence

__all__ = ["Code", "code_folders"]

# Seconds between two scans; with many files, at least PACE times the duration of a scan.
SCAN_INTERVAL = 1.0
PACE = 20.0

# Seconds without a further change after which an editor, or git, counts as done.
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
    # A process may run in the root directory, and below that is the whole machine.
    return sorted(path for path in folders - {os.sep} if not f"{path}{os.sep}".startswith(others))


class Code:
    """The files below ``folders``, as the last scan found them."""

    def __init__(self, folders: Sequence[str]) -> None:
        self._folders = folders
        self._files = self._scan()

    async def change(self) -> str:
        """Return one file that was changed, added or removed, once no more changes follow."""
        took = 0.0
        while True:
            await asyncio.sleep(max(SCAN_INTERVAL, PACE * took))
            began = time.monotonic()
            files = await asyncio.to_thread(self._scan)
            took = time.monotonic() - began
            if files != self._files:
                break
        before = self._files
        while files != self._files:
            self._files = files
            await asyncio.sleep(SETTLED)
            files = await asyncio.to_thread(self._scan)
        changed = sorted(path for path, _ in before.items() ^ files.items())
        return f"path={next(iter(changed), '')!r}"

    def _scan(self) -> Files:
        return dict(_python_files(self._folders))


def _python_files(folders: Sequence[str]) -> Iterator[tuple[str, tuple[int, int]]]:
    """Each file's path with its time of change and size."""
    waiting = list(folders)
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as found:
                entries = [entry for entry in found if not entry.name.startswith(".")]
        except OSError:  # removed meanwhile, or not readable
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
