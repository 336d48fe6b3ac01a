"""For the tests of sites that use aiotasks: run enqueued tasks, and assert that they were enqueued.

Both functions work in ``TestCase`` (they see the test's uncommitted rows and leave none),
``TransactionTestCase`` and pytest-asyncio. Await them in coroutines, call them in sync code.
Where sync code runs on an event loop's thread (Playwright's sync API, a notebook) set
DJANGO_ALLOW_ASYNC_UNSAFE, as for Django's ORM: then they do their work before they return.
"""

from .assertions import assert_enqueued
from .draining import drain

__all__ = ["assert_enqueued", "drain"]
