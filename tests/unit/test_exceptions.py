"""The tree of errors that the module's docstring draws is the one that it defines."""

import copy
import pickle
import re

import pytest

from aiotasks import exceptions


def test_the_tree_of_errors_is_true() -> None:
    assert exceptions.__doc__ is not None
    drawn = re.findall(r"^        [├└]── (\w+)", exceptions.__doc__, re.M)
    assert ["AiotasksError", *drawn] == exceptions.__all__
    for name in drawn:
        assert issubclass(getattr(exceptions, name), exceptions.AiotasksError)
    for name, kind in re.findall(r"(\w+) .*\(an? (\w+) too\)", exceptions.__doc__):
        assert kind in {base.__name__ for base in getattr(exceptions, name).__mro__}


class Result:
    id = "1"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Result)

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    "error",
    [
        exceptions.Snooze(for_=3),
        exceptions.RateLimited(after=3),
        exceptions.Retry("why", after=3),
        exceptions.DuplicateTask("key", Result()),
        exceptions.UnknownTask("a.b", "why"),
        exceptions.InvalidRow(1, "why"),
        exceptions.GiveUp("why"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_they_are_pickled_and_copied(error: Exception) -> None:
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(other) is type(error)
        assert (str(other), other.args, other.__dict__) == (str(error), error.args, error.__dict__)
