"""The tree of errors that the module's docstring draws is the one that it defines."""

import re

from aiotasks import exceptions


def test_the_tree_of_errors_is_true() -> None:
    assert exceptions.__doc__ is not None
    drawn = re.findall(r"^        [├└]── (\w+)", exceptions.__doc__, re.M)
    assert ["AiotasksError", *drawn] == exceptions.__all__
    for name in drawn:
        assert issubclass(getattr(exceptions, name), exceptions.AiotasksError)
    for name, kind in re.findall(r"(\w+) .*\(an? (\w+) too\)", exceptions.__doc__):
        assert kind in {base.__name__ for base in getattr(exceptions, name).__mro__}
