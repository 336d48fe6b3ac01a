"""Policies, from the decorator to the columns."""

import math
from dataclasses import fields
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.tasks import Task

from aiotasks import models, task
from aiotasks.policies.policy import (
    COLUMNS,
    NO_POLICY,
    CallKeywords,
    Policy,
    PolicyFields,
    PolicyKeywords,
    policy_of,
    stored_policy,
)
from aiotasks.store.statements import load

from . import tasks


def test_every_policy_has_its_keyword_field_and_column() -> None:
    names = [field.name for field in fields(PolicyFields)]
    assert sorted(PolicyKeywords.__optional_keys__) == sorted(names)
    assert CallKeywords.__optional_keys__ < PolicyKeywords.__optional_keys__
    assert list(Policy._fields) == list(COLUMNS)
    for name, column in COLUMNS.items():
        field = models.Task._meta.get_field(name)
        assert (field.db_type(connection), field.null) == (column, True), name
    assert ", ".join(COLUMNS) in load("insert_job").sql


def test_using_takes_none_for_a_value_of_its_own() -> None:
    changed = tasks.good.using(max_crashes=2, keep_result=timedelta(minutes=1))
    assert policy_of(changed) == Policy(max_crashes=2, keep_result=60.0)
    assert policy_of(changed.using(priority=3)) == Policy(max_crashes=2, keep_result=60.0)
    assert policy_of(changed.using(keep_result=None)) == Policy(max_crashes=2)
    assert policy_of(changed.using(max_crashes=None, keep_result=math.inf)) == Policy(keep_result=math.inf)


@pytest.mark.parametrize("unknown", ["max_crash", "func", "takes_context"])
def test_an_unknown_policy_is_a_type_error(unknown: str) -> None:
    wrong: dict[str, Any] = {unknown: 1}
    with pytest.raises(TypeError, match=rf"using\(\) got an unexpected keyword argument '{unknown}'"):
        tasks.good.using(**wrong)
    if unknown != "takes_context":  # which the decorator has
        with pytest.raises(TypeError, match=rf"task\(\) got an unexpected keyword argument '{unknown}'"):
            task(**wrong)


def test_a_task_of_djangos_own_has_no_policy() -> None:
    # All that Django 6.0 wants.
    plain: Task[..., object] = Task(
        func=tasks.function, priority=0, backend="default", queue_name="default", run_after=None
    )
    assert policy_of(plain) is NO_POLICY


def test_equal_policies_share_an_object() -> None:
    assert policy_of(tasks.good.using(max_crashes=5)) is stored_policy(tuple(Policy(max_crashes=5)))
