"""The demo from start to end: PostgreSQL, tables, site and worker, work, findings, and the shutdown."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any

import django
from django.core.management import call_command
from django.db import connection
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from aiotasks.demo.errors import DemoError
from aiotasks.demo.interrupts import Interrupts
from aiotasks.demo.postgres import PostgresServer
from aiotasks.demo.server import serve
from aiotasks.demo.stdlib import sources


def show(console: Console, interrupts: Interrupts, *, port: int, stay: bool) -> bool:
    """Run the demo; return whether every task was successful. With `stay`, show a page that starts the work,
    until a signal arrives.

    A signal takes effect at the end of the current step, or cancels the work.
    """
    with ExitStack() as stack:
        console.print("Starting PostgreSQL…")
        try:
            postgres = stack.enter_context(PostgresServer())
        except RuntimeError as error:
            raise DemoError(str(error)) from error
        interrupts.check()
        console.print("Creating the tables…")
        _set_up_django(postgres)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_serve_and_work(console, interrupts, port=port, stay=stay))


def _set_up_django(postgres: PostgresServer) -> None:
    os.environ["DJANGO_SETTINGS_MODULE"] = "aiotasks.demo.settings"
    os.environ["AIOTASKS_DEMO_HOST"] = postgres.host
    os.environ["AIOTASKS_DEMO_PORT"] = str(postgres.port)
    os.environ["AIOTASKS_DEMO_USER"] = postgres.user
    django.setup()
    call_command("migrate", verbosity=0)
    connection.close()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _serve_and_work(console: Console, interrupts: Interrupts, *, port: int, stay: bool) -> bool:
    async with serve("aiotasks.demo.asgi:application", port) as url:
        console.print(f"The site is up, with a worker in its lifespan: {url}")
        return await _until_interrupted(interrupts, _stay(console, url) if stay else _work(console, url))


async def _until_interrupted[T](interrupts: Interrupts, work: Coroutine[Any, Any, T]) -> T:
    """Await `work`; a signal, also an earlier one, cancels it and raises Interrupted."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    interrupts.on_interrupt = lambda: loop.call_soon_threadsafe(task.cancel)
    if interrupts.signum is not None:
        task.cancel()
    try:
        return await task
    except asyncio.CancelledError:
        interrupts.check()
        raise
    finally:
        interrupts.on_interrupt = None


async def _stay(console: Console, url: str) -> bool:
    console.print(f"Its page starts the work. It stays up until Ctrl-C: {url}/")
    await asyncio.Event().wait()
    return True


async def _work(console: Console, url: str) -> bool:
    # Imported late, because they have tasks, and tasks need settings.
    from aiotasks.demo.client import survey
    from aiotasks.demo.report import print_findings

    total = len(sources())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        measured = progress.add_task("Measuring the modules of the standard library", total=total)
        fetched = progress.add_task("Fetching the pages with their sources", total=total)

        def show(sources: int, pages: int) -> None:
            progress.update(measured, completed=sources)
            progress.update(fetched, completed=pages)

        found = await survey(url, show)
    print_findings(console, found)
    return not (found.sources["failed"] or found.pages["failed"])
