"""A limit that no module `tasks` of an app imports."""

from aiotasks import Limit, task

limit = Limit("operations.late", by="key", concurrency=1)


@task(limit=limit)
async def late(key: str) -> None: ...
