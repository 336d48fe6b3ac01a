"""One or two tasks for each package."""

import overseer
import sentry_sdk
import structlog
from apscheduler.triggers.interval import IntervalTrigger
from crontask import cron
from django.tasks import task
from django_periodic_tasks.decorators import exactly_once
from django_periodic_tasks.registry import scheduled_task

from .models import Item

logger = structlog.get_logger()


@task
def add_item(name):
    Item.objects.create(name=name)


@overseer.task(retries=2, backoff="constant", backoff_base=0, jitter=False)
def flaky(name):
    """Fails at its first run."""
    Item.objects.create(name=name)
    if Item.objects.filter(name=name).count() == 1:
        raise ValueError("the first run")


@cron(IntervalTrigger(seconds=1), sentry_monitor_config=None)
@task
def every_second():
    Item.objects.create(name="crontask")


@scheduled_task(cron="0 0 1 1 *", name="yearly")
@task
@exactly_once
def yearly():
    Item.objects.create(name="periodic")


@task
def fail(message):
    sentry_sdk.set_tag("tagged_by", "the body")
    raise ValueError(message)


@task
async def afail(message):
    raise ValueError(message)


@task
def log(word):
    logger.info("from the body", word=word)


@task
async def alog(word):
    logger.info("from the body", word=word)
