"""For the tests of sites that use aiotasks: run what was enqueued, and see that it was.

Both functions work in ``TestCase`` (they see the test's uncommitted rows and leave none),
``TransactionTestCase`` and pytest-asyncio; in a coroutine they are awaited, in sync code called.
Where sync code runs on an event loop's thread (Playwright's sync API, a notebook) set
DJANGO_ALLOW_ASYNC_UNSAFE, as for Django's ORM: then they do their work before they return.
"""

from .assertions import assert_enqueued
from .draining import drain

__all__ = ["assert_enqueued", "drain"]
