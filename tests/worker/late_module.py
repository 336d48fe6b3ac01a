"""A module that no process imports before a worker runs its task."""

from aiotasks import task


@task
async def late() -> str:
    return __name__
