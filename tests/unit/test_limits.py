"""Limits: their values, their names, and the keys of calls."""

import enum
import pickle
from copy import deepcopy
from datetime import timedelta
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.tasks.exceptions import InvalidTask

from aiotasks import Limit, task
from aiotasks.policies import limits
from aiotasks.policies.limit_keys import limit_key_of_call
from aiotasks.policies.limits import Rate, known_limits, parse_rate

from . import tasks

PATH = "site.tasks.work"


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test may declare any name."""
    monkeypatch.setattr(limits, "_known", {})


def key_of(made: Any, *args: Any, **kwargs: Any) -> str | None:
    return limit_key_of_call(made, PATH, list(args), kwargs)


def of(
    limit: Limit, function: Any = tasks.function, *, limit_key: str | None = None, takes_context: bool = False
) -> Any:
    """What a task has for its keys, of any function."""
    return SimpleNamespace(func=function, limit=limit, limit_key=limit_key, takes_context=takes_context)


def test_what_a_limit_has() -> None:
    tenant = Limit("tenant", by="tenant_id", concurrency=3, rate="100/m", burst=20, weight=2)
    assert (tenant.name, tenant.by, tenant.concurrency, tenant.rate) == (
        "tenant",
        "tenant_id",
        3,
        Rate(100, 60.0),
    )
    assert (tenant.pace, tenant.burst, tenant.weight) == (0.6, 20, 2)
    assert (tenant.ordered, tenant.after_failure, tenant.stored_order) == (False, "continue", None)
    assert Limit("stripe", concurrency=10).pace is None
    assert Limit("account", by="id", ordered=True).stored_order == "continue"
    assert Limit("ledger", by="id", ordered=True, after_failure="stop").stored_order == "stop"
    with pytest.raises(AttributeError):
        tenant.concurrency = 4  # type: ignore[misc]  # that is the test


@pytest.mark.parametrize(
    ("value", "rate"),
    [
        ("100/m", Rate(100, 60.0)),
        ("1/s", Rate(1, 1.0)),
        (" 5 / h ", Rate(5, 3600.0)),
        ("20/d", Rate(20, 86_400.0)),
        ("1/10s", Rate(1, 10.0)),
        ("3/0.5s", Rate(3, 0.5)),
        ((100, timedelta(minutes=1)), Rate(100, 60.0)),
        ((7, 2.5), Rate(7, 2.5)),
        ((1, timedelta(days=365)), Rate(1, 365 * 86_400.0)),
        ((1_000_000, 0.001), Rate(1_000_000, 0.001)),
        ((3, 1 / 3), Rate(3, 1 / 3)),
        ((3, 123456.789), Rate(3, 123456.789)),
        ((1, 90), Rate(1, 90.0)),
    ],
)
def test_rates(value: Any, rate: Rate) -> None:
    assert parse_rate(value) == rate
    assert parse_rate(str(rate)) == rate
    assert parse_rate(rate) == rate


@pytest.mark.parametrize(
    "value",
    [
        "",
        "100",
        "m",
        "100/",
        "0/s",
        "-1/s",
        "1.5/s",
        "100/month",
        "10000000/s",
        "1/0s",
        "1/366d",
        "١/s",
        (0, 1),
        (1.0, 1),
        (True, 1),
        (1, 0),
        (1, timedelta(days=366)),
        (1, "s"),
        (1,),
        (1, 2, 3),
        100,
        b"1/s",
    ],
)
def test_bad_rates(value: Any) -> None:
    with pytest.raises(
        ValueError, match="a number of starts from 1 to 1000000 and a time from 1 ms to a year"
    ):
        parse_rate(value)
    with pytest.raises(ValueError, match=r"^Limit 'x': rate must be a number of .*'100/m'.*, not "):
        Limit("x", rate=value)


@pytest.mark.parametrize(
    ("rate", "burst"),
    [
        ("1/d", 1),
        ("10/s", 1),
        ("19/s", 1),
        ("20/s", 2),
        ("70/s", 7),
        ("60000/m", 100),
        ("1000000/0.001s", 100_000),
    ],
)
def test_the_burst_is_a_tenth_of_a_second(rate: str, burst: int) -> None:
    assert Limit("x", rate=rate).burst == burst


async def coroutine_function(tenant_id: int) -> int:
    return tenant_id


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"name": "Tenant"},
            "The name of a Limit must have 1 to 100 characters of a-z, 0-9, '_', '.' and '-', "
            "not be 'Tenant'.",
        ),
        ({"name": ""}, "The name of a Limit"),
        ({"name": "a:b"}, "The name of a Limit"),
        ({"name": "a\n"}, "The name of a Limit"),
        ({"name": "a" * 101}, "The name of a Limit"),
        ({"name": None}, "The name of a Limit"),
        ({"by": ""}, "by must be the name of a parameter, or a function of the arguments"),
        ({"by": "a b"}, "not 'a b'."),
        ({"by": 5}, "not 5."),
        ({"by": str}, "not <class 'str'>."),
        ({"by": coroutine_function}, "(not a coroutine function)"),
        ({"concurrency": 0}, "Limit 'x': concurrency must be a whole number from 1 to 100000, not 0."),
        ({"concurrency": True}, "not True."),
        ({"concurrency": 2.0}, "not 2.0."),
        ({"rate": "1/s", "burst": 0}, "burst must be a whole number from 1 to 100000, not 0."),
        ({"burst": 5, "concurrency": 1}, "burst=5 belongs to a rate, so give rate=, too."),
        ({"weight": 0}, "weight must be a whole number from 1 to 100, not 0."),
        ({"weight": None}, "not None."),
        ({"weight": 101}, "not 101."),
        ({"ordered": 1}, "ordered must be True or False, not 1."),
        ({"ordered": True, "concurrency": 1}, "so concurrency=1 can't be given."),
        ({"after_failure": "stop"}, "so give ordered=True, too."),
        (
            {"ordered": True, "after_failure": "halt"},
            "after_failure must be 'continue' or 'stop', not 'halt'.",
        ),
        ({"weight": 2}, "Limit 'x' limits nothing. Give concurrency=, rate=, ordered=True or by=."),
    ],
)
def test_bad_limits(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the message is compared below
        Limit(**{"name": "x", **given})
    assert message in str(caught.value)
    assert "x" not in known_limits()


def test_a_name_is_of_one_limit() -> None:
    first = Limit("tenant", by="tenant_id", concurrency=3)
    again = Limit("tenant", by=lambda tenant: tenant, concurrency=3)  # of tasks with other parameters
    assert again == first
    assert hash(again) == hash(first)
    assert known_limits()["tenant"] is first
    with pytest.raises(ValueError, match=r"^Limit 'tenant' is declared with other values") as caught:
        Limit("tenant", by="tenant_id", concurrency=4)
    here = Path(__file__).name
    assert str(caught.value).count(f"{here}:") == 2, caught.value
    assert known_limits()["tenant"].concurrency == 3
    others: list[dict[str, Any]] = [{"rate": "1/s"}, {"weight": 2}, {"concurrency": None}]
    for other in others:
        with pytest.raises(ValueError, match="other values"):
            Limit("tenant", **{"by": "tenant_id", "concurrency": 3, **other})


def test_a_limit_is_copied_and_pickled() -> None:
    limit = Limit("tenant", by="tenant_id", rate="100/m")
    for copy in (deepcopy(limit), pickle.loads(pickle.dumps(limit))):
        assert (copy, copy.by, copy.place) == (limit, limit.by, limit.place)


def test_a_pickled_task_has_its_limit_from_the_code() -> None:
    for made, policies in ((tasks.in_line, set()), (tasks.in_line.using(limit_key=4), {"limit_key"})):
        (kwargs,) = made.__reduce__()[1]
        assert set(kwargs) & {"limit", "limit_key"} == policies
        assert pickle.loads(pickle.dumps(made)) == made
    assert deepcopy(tasks.in_line).limit is tasks.in_line.limit


# --- As policies


def test_a_task_takes_a_limit() -> None:
    limit = Limit("stripe", concurrency=10)
    made = task(limit=limit)(tasks.function)
    assert (made.limit, made.limit_key) == (limit, None)
    assert made.using(limit_key=42).limit_key == "42"
    assert made.using(limit_key="42").using(limit_key=None).limit_key is None
    assert task(limit=limit, limit_key="all")(tasks.function).limit_key == "all"
    wrong: Any = {"limit": limit}
    with pytest.raises(TypeError, match=r"using\(\) takes no limit: .*Write @task\(limit=…\)"):
        made.using(**wrong)


def parameter(tenant_id: int) -> None:
    pass


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"limit": "tenant"}, "limit must be an aiotasks.Limit, such as Limit("),
        ({"limit_key": "42"}, "limit_key='42' is the key of a limit, and the task has none."),
        ({"limit_key": ""}, "limit_key must be an integer or a string, of 1 to 200 characters"),
        ({"limit_key": "a\0"}, "without NUL and surrogates, not 'a\\x00'."),
        ({"limit_key": "\ud800"}, "without NUL and surrogates"),
        ({"limit_key": "k" * 201}, "of 1 to 200 characters"),
        ({"limit_key": 10**200}, "of 1 to 200 characters"),
        ({"limit_key": True}, "not True."),
        ({"limit_key": 1.5}, "not 1.5."),
        (
            {"by": "tenant"},
            "Limit 'x' goes by the parameter 'tenant', which the task's function doesn't have.",
        ),
    ],
)
def test_bad_policies(given: dict[str, Any], message: str) -> None:
    if "by" in given:
        given = {"limit": Limit("x", by=given["by"])}
    with pytest.raises(InvalidTask) as caught:
        task(**given)(tasks.function)
    assert message in str(caught.value)


# --- Keys


def test_one_key_for_all() -> None:
    limit = Limit("stripe", concurrency=10)
    assert key_of(of(limit), 1, a=2) == "stripe"
    assert key_of(of(limit, limit_key="eu")) == "stripe:eu"
    assert key_of(tasks.good) is None


def positional(other: int, tenant_id: int, /, **more: int) -> None: ...
def either(other: int, tenant_id: int) -> None: ...
def optional(other: int = 0, tenant_id: int | None = None) -> None: ...
def default(other: int = 0, tenant_id: int = 7) -> None: ...
def keyword(*other: int, tenant_id: int) -> None: ...
def in_context(context: Any, other: int, tenant_id: int) -> None: ...
def anything(*args: Any, **kwargs: Any) -> None: ...


@pytest.mark.parametrize(
    ("function", "args", "kwargs", "key"),
    [
        (positional, [1, 42], {"tenant_id": 5}, "tenant:42"),
        (either, [1, 42], {}, "tenant:42"),
        (either, [1], {"tenant_id": 42}, "tenant:42"),
        (either, [], {"tenant_id": "ü x", "other": 1}, "tenant:ü x"),
        (optional, [1], {}, None),
        (optional, [1, None], {}, None),
        (default, [], {}, "tenant:7"),
        (keyword, [1, 2, 3], {"tenant_id": 42}, "tenant:42"),
        (in_context, [1, 42], {}, "tenant:42"),
        (anything, [1], {"tenant_id": 42}, "tenant:42"),
        (either, [1, "k" * 200], {}, "tenant:" + "k" * 200),
        (either, [1, -(10**198)], {}, f"tenant:-{10**198}"),
    ],
)
def test_the_key_is_the_value_of_a_parameter(
    function: Any, args: list[Any], kwargs: dict[str, Any], key: str | None
) -> None:
    made = of(Limit("tenant", by="tenant_id"), function, takes_context=function is in_context)
    assert key_of(made, *args, **kwargs) == key


def test_a_parameter_behind_a_wrapper_is_given_by_name() -> None:
    """It may add arguments, so that a place among them says nothing."""

    @wraps(either)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return either(0, *args, **kwargs)

    made = of(Limit("tenant", by="tenant_id"), wrapper)
    assert key_of(made, tenant_id=3) == "tenant:3"
    with pytest.raises(
        TypeError, match=r"^The limit of site.tasks.work goes by the argument 'tenant_id'.*by name"
    ):
        key_of(made, 3)
    assert key_of(of(made.limit, wrapper, limit_key="4"), 3) == "tenant:4"


class Key(str, enum.Enum):  # noqa: UP042  # str() of a StrEnum's member is its value
    ONE = "one"


class Number(int, enum.Enum):
    ONE = 1


def made_key(value: Any, *, fail: bool = False) -> Any:
    if fail:
        raise KeyError("tenant")
    return {"key": Key.ONE, "number": Number.ONE}.get(value, value)


def test_a_function_makes_the_key() -> None:
    made = of(Limit("tenant", by=made_key))
    assert key_of(made, "a") == "tenant:a"
    assert key_of(made, "key") == "tenant:one"
    assert key_of(made, "number") == "tenant:1"
    assert key_of(made, None) is None
    with pytest.raises(
        ValueError, match=r"^The function that makes keys of limit 'tenant' failed for site.*KeyError"
    ):
        key_of(made, "a", fail=True)
    with pytest.raises(TypeError, match=r"failed for site.tasks.work: TypeError"):
        key_of(made)


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        ("", ValueError, "not ''"),
        ("k" * 201, ValueError, "of 1 to 200 characters"),
        ("a\0", ValueError, "without NUL"),
        (10**200, ValueError, "of 1 to 200 characters"),
        (True, TypeError, "not True"),
        (1.5, TypeError, "not 1.5"),
        ([1], TypeError, r"not \[1\]"),
    ],
)
def test_what_is_no_key(value: Any, error: type[Exception], text: str) -> None:
    for made in (of(Limit("tenant", by="tenant_id"), either), of(Limit("tenant", by=lambda _, key: key))):
        with pytest.raises(error, match=rf"^The key of limit 'tenant' of site.tasks.work must be .*{text}"):
            key_of(made, 1, value)


@pytest.mark.filterwarnings("error")
def test_a_coroutine_is_no_key() -> None:
    by: Any = lambda value: coroutine_function(value)  # noqa: E731  # a function, as users write it
    with pytest.raises(TypeError, match="not <coroutine object coroutine_function"):
        key_of(of(Limit("tenant", by=by)), 1)
