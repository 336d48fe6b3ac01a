"""For the tests of sites that use aiotasks: run enqueued tasks, and assert that they were enqueued.

Both functions work in ``TestCase`` (they see the test's uncommitted rows and leave none),
``TransactionTestCase`` and pytest-asyncio. Await them in coroutines, call them in sync code.
Where sync code runs on an event loop's thread (Playwright's sync API, a notebook) set
DJANGO_ALLOW_ASYNC_UNSAFE, as for Django's ORM: then they do their work before they return.

``ImmediateBackend`` and ``DummyBackend`` are for tests without PostgreSQL.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .assertions import assert_enqueued
    from .draining import drain
    from .dummy import DummyBackend
    from .immediate import ImmediateBackend

__all__ = ["DummyBackend", "ImmediateBackend", "assert_enqueued", "drain"]

# TASKS may name a backend of this module, which Django then imports before the models, that the functions
# need: each name is imported at its first use (PEP 562).
_HOMES = {
    "DummyBackend": "dummy",
    "ImmediateBackend": "immediate",
    "assert_enqueued": "assertions",
    "drain": "draining",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value
