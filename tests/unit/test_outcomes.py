"""Every outcome can be written."""

from types import SimpleNamespace
from typing import Any, get_args
from uuid import uuid4

from aiotasks.worker.outcomes import Failed, Outcome, Snoozed
from aiotasks.worker.writing.writers import WRITERS, Statements


def test_each_outcome_has_a_writer() -> None:
    assert set(WRITERS) == set(get_args(Outcome))


def test_a_key_is_closed_for_the_longest_time_that_was_asked_for() -> None:
    statements, failure = Statements(), Failed(ValueError(), "{}")
    asked = [("a", 3.0), ("a", 5.0), ("b", 2.0), ("a", 4.0), (None, 9.0)]
    job: Any = SimpleNamespace(id=uuid4(), claim_id=uuid4())
    for key, seconds in asked:
        statements.add(job, Snoozed(seconds, failure, closes=key))
    assert statements.closed == {"a": 5.0, "b": 2.0}
    assert [row.delay for row in statements.releases] == [seconds for _, seconds in asked]
