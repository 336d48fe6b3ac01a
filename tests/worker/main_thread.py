"""A module that only a main thread can import."""

import os
import signal
from pathlib import Path

from aiotasks import task

with Path(os.environ["IMPORTS"]).open("a") as imports:
    imports.write("main_thread\n")
signal.signal(signal.SIGALRM, signal.SIG_IGN)


@task
def sync(a: int, b: int) -> str:
    return "sync"


@task
async def coroutine(a: int, b: int) -> str:
    return "coroutine"
