"""What stored paths may lead to."""

from typing import Any

from django.tasks import task as django_task

from aiotasks import Limit, task


@task
async def good() -> None:
    pass


@task(max_crashes=5)
def sync_good() -> int:
    return 1


@django_task
def plain() -> None:
    pass


def backoff(exception: BaseException, result: Any) -> float:
    return 1.0


@task(max_attempts=2, backoff=lambda error, result: 1.0, unique_key=lambda: "key")
def with_lambdas() -> None: ...


@task(
    max_attempts=5,
    backoff=backoff,
    retry_on=OSError,
    give_up_on=(PermissionError,),
    timeout=60,
    expires=3600,
    unique_key="key",
    on_conflict="replace",
    unique_for="waiting",
    keep_run_after=True,
)
def with_policies() -> None:
    pass


@task
def anything(*args: Any, **kwargs: Any) -> None: ...


@task(limit=Limit("tests.unit", by="key", ordered=True, after_failure="stop"))
def in_line(key: int) -> None:
    pass


def function() -> None:
    pass


alias_of_good = good
text = "tests.unit.tasks.good"
