"""Imports: imports the modules of tasks, in threads where that is possible."""

import asyncio
import threading
from collections.abc import Mapping
from concurrent.futures import Executor
from contextvars import Context

from ...exceptions import UnknownTask
from ...registry import known, resolve
from ...rows import AnyTask

__all__ = ["MOST_UNKNOWNS", "Imports"]

# Unknown paths that are remembered; the table may hold any number of them.
MOST_UNKNOWNS = 1000


class Imports:
    """Imports tasks in threads of ``importer`` (None: the loop's default executor), because that runs user
    code and may take long.
    """

    def __init__(self, moved_tasks: Mapping[str, str], importer: Executor | None) -> None:
        self._moved_tasks = moved_tasks
        self._importer = importer
        self._loop = asyncio.get_running_loop()
        self._importing: dict[str, asyncio.Future[AnyTask]] = {}
        self._imported_here: set[str] = set()  # paths that were tried on the loop's thread

    async def resolve(self, task_path: str) -> AnyTask:
        """Return the Task of a stored path; callers at the same time share an import. Raises UnknownTask."""
        importing = self._importing.get(task_path)
        if importing is None:
            try:
                importing = self._loop.run_in_executor(self._importer, resolve, task_path, self._moved_tasks)
            except RuntimeError:  # no more threads: this blocks the loop, but the task runs
                return Context().run(resolve, task_path, self._moved_tasks)
            self._importing[task_path] = importing
            importing.add_done_callback(lambda _: self._importing.pop(task_path))
        try:
            return await asyncio.shield(importing)
        except UnknownTask as error:
            if (task := known(task_path, self._moved_tasks)) is not None:
                return task  # meanwhile imported on this thread for another job
            if not self._may_import_here(task_path, error):
                raise
        return Context().run(resolve, task_path, self._moved_tasks)

    def _may_import_here(self, task_path: str, error: UnknownTask) -> bool:
        """Whether to try the import once more on the loop's thread, once for each path.

        If that is the main thread, the module may need it, for ``signal.signal()``. A module that doesn't
        exist or has a syntax error fails in any thread.
        """
        cause = error.__cause__
        if (
            cause is None
            or isinstance(cause, ImportError | SyntaxError)
            or threading.current_thread() is not threading.main_thread()
            or task_path in self._imported_here
        ):
            return False
        if len(self._imported_here) >= MOST_UNKNOWNS:
            self._imported_here.clear()
        self._imported_here.add(task_path)
        return True
