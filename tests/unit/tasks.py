"""What stored paths may lead to."""

from django.tasks import task as django_task

from aiotasks import task


@task
async def good() -> None:
    pass


@task(max_crashes=5)
def sync_good() -> int:
    return 1


@django_task
def plain() -> None:
    pass


def function() -> None:
    pass


alias_of_good = good
text = "tests.unit.tasks.good"
