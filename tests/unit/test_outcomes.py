"""Every outcome can be written."""

from typing import get_args

from aiotasks.worker.outcomes import Outcome
from aiotasks.worker.writing.writers import WRITERS


def test_each_outcome_has_a_writer() -> None:
    assert set(WRITERS) == set(get_args(Outcome))
