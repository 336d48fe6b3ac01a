"""The JSON rules (docs/faults.md, 40) and stored errors (docs/faults.md, 41)."""

import enum
import json
from collections import OrderedDict, UserDict, deque, namedtuple
from datetime import datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from aiotasks.codec import CANCELLED, CANCELLED_START, MAX_DEPTH, decode, dump_error, dump_json, normalize
from aiotasks.exceptions import TaskCancelled, TaskExpired

LIMIT = 1024 * 1024


class Name(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "something else"


class Count(int):
    def __int__(self) -> int:
        raise AssertionError("not to be asked")


class Share(float):
    def __repr__(self) -> str:
        return "half"


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


Point = namedtuple("Point", "x y")


def dump(value: Any, where: str = "args", limit: int = LIMIT) -> tuple[Any, str]:
    return dump_json(value, where=where, limit=limit)


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((1, (2,)), [1, [2]]),
        (Point(1, 2), [1, 2]),
        (deque([1]), [1]),
        (range(3), [0, 1, 2]),
        (b"caf\xc3\xa9", "café"),
        ({b"k": b"v"}, {"k": "v"}),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (MappingProxyType({"a": (1,)}), {"a": [1]}),
        (UserDict(a=b"x"), {"a": "x"}),
        (Name("me"), "me"),
        ({Name("k"): Name("v")}, {"k": "v"}),
        (Count(7), 7),
        (Share(0.5), 0.5),
        ([Count(7), Share(0.5)], [7, 0.5]),
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        ({1: "a", 2.5: "b", None: "c"}, {"1": "a", "2.5": "b", "null": "c"}),
        ({True: "d", False: "e"}, {"true": "d", "false": "e"}),
        ({Level.HIGH: 1}, {"3": 1}),
        ([None, True, False, 1, -1.5, "x"], [None, True, False, 1, -1.5, "x"]),
    ],
    ids=lambda value: repr(value)[:30],
)  # fmt: skip
def test_what_is_normalised(value: Any, expected: Any) -> None:
    plain, text = dump(value)
    for result in (plain, decode(text)):
        assert result == expected
        assert repr(result) == repr(expected)  # types and the order of keys, too


@pytest.mark.parametrize(
    "value",
    ["\0", "\ud800", "\udfff\ud800", -0.0, 5e-324, 1.8e307, 2**53 + 1, 10**4299, {"": 0}, nested(MAX_DEPTH)],
    ids=lambda value: repr(value)[:20],
)
def test_what_is_kept_exactly(value: Any) -> None:
    plain, text = dump([value] if not isinstance(value, list) else value)
    assert repr(decode(text)) == repr(plain)
    assert repr(plain) == repr([value] if not isinstance(value, list) else value)
    assert text.isascii()


CYCLE: list[Any] = []
CYCLE.append(CYCLE)
CYCLIC: dict[str, Any] = {}
CYCLIC["me"] = CYCLIC


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        (
            {"a": [0, 1, 2, object()]},
            TypeError,
            "kwargs['a'][3]: Unsupported type: <class 'object'>.",
        ),
        ({"a": {1, 2}}, TypeError, "kwargs['a']: Unsupported type: <class 'set'>."),
        ({"a": Decimal(1)}, TypeError, "kwargs['a']: Unsupported type: <class 'decimal.Decimal'>."),
        ({"a": datetime.min}, TypeError, "kwargs['a']: Unsupported type: <class 'datetime.datetime'>."),
        ({"a": bytearray(b"x")}, TypeError, "kwargs['a']: Unsupported type: <class 'bytearray'>."),
        ({"a": memoryview(b"x")}, TypeError, "kwargs['a']: Unsupported type: <class 'memoryview'>."),
        ({"a": b"\xff"}, TypeError, "kwargs['a']: bytes that aren't UTF-8."),
        ({"a": [float("nan")]}, ValueError, "kwargs['a'][0] is nan, which JSON can't hold."),
        ({"a": float("-inf")}, ValueError, "kwargs['a'] is -inf, which JSON can't hold."),
        ({"a": Share("inf")}, ValueError, "kwargs['a'] is inf, which JSON can't hold."),
        ({"a": 10**4300}, ValueError, "kwargs['a'] is an integer of more than 4,300 digits."),
        ({"a": [Count(-(10**5000))]}, ValueError, "kwargs['a'][0] is an integer of more than 4,300 digits."),
        ({1: 0, "1": 0}, ValueError, "kwargs has two keys that are both '1' in JSON."),
        ({"x": {True: 0, "true": 0}}, ValueError, "kwargs['x'] has two keys that are both 'true' in JSON."),
        ({b"a": 0, "a": 1}, ValueError, "kwargs has two keys that are both 'a' in JSON."),
        ({(1, 2): 0}, TypeError, "a key of kwargs: Unsupported type: <class 'tuple'>."),
        ({b"\xff": 0}, TypeError, "a key of kwargs: bytes that aren't UTF-8."),
        ({float("inf"): 0}, ValueError, "a key of kwargs is inf, which JSON can't hold."),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused_by_its_place(value: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind) as caught:
        dump(value, "kwargs")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "value", [nested(MAX_DEPTH + 1), nested(100_000), CYCLE, CYCLIC], ids=["by one", "by far", "list", "dict"]
)
def test_too_deep_is_refused_before_python_gives_up(value: Any) -> None:
    with pytest.raises(ValueError, match=f"is nested deeper than {MAX_DEPTH} levels") as caught:
        dump(value)
    assert len(str(caught.value)) < 200


def test_two_lone_surrogates_that_make_a_pair_come_back_as_told() -> None:
    """JSON can't tell them from the character that they stand for."""
    plain, text = dump(["\ud83d\ude00"])
    assert plain == decode(text) == ["😀"]
    with pytest.raises(ValueError, match="two keys"):
        dump({"\ud83d\ude00": 1, "😀": 2})


def test_the_limit_is_in_bytes_of_json() -> None:
    assert dump(["é"], limit=10) == (["é"], '["\\u00e9"]')
    with pytest.raises(ValueError, match=r"^args takes 10 bytes as JSON; the limit is 9\.$"):
        dump(["é"], limit=9)


def test_nothing_is_decoded_as_none() -> None:
    assert decode(None) is None
    assert decode("null") is None


plain_text = st.text(st.characters(exclude_categories=[]), max_size=8)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
leaves = st.none() | st.booleans() | numbers | plain_text
json_values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(plain_text, inner, max_size=4),
    max_leaves=20,
)
keys = plain_text | numbers | st.none() | st.booleans() | st.binary(max_size=3)
pythonic: st.SearchStrategy[Any] = st.recursive(
    leaves | st.binary(max_size=6) | st.builds(Name, plain_text) | st.builds(Share, numbers) | st.decimals(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.builds(deque, st.lists(inner, max_size=3))
        | st.dictionaries(keys, inner, max_size=4)
    ),
    max_leaves=20,
)  # fmt: skip


def same(one: Any, other: Any) -> bool:
    """Equal, of equal types, in equal order, and -0.0 isn't 0.0."""
    return repr(one) == repr(other)


@hypothesis_settings(max_examples=300, deadline=None)
@given(json_values)
def test_what_json_keeps_comes_back_exactly(value: Any) -> None:
    plain, text = dump(value)
    assert same(decode(text), json.loads(json.dumps(value)))
    assert same(plain, decode(text))


@hypothesis_settings(max_examples=300, deadline=None)
@given(pythonic)
def test_what_is_returned_is_what_is_read_back_or_it_is_refused(value: Any) -> None:
    try:
        plain, text = dump(value)
    except (TypeError, ValueError):
        return
    assert same(plain, decode(text))
    assert same(normalize(plain, "args"), plain)


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


class BrokenStr(Exception):
    def __str__(self) -> str:
        raise ValueError("no")


class ExitingStr(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class StrOfAnotherType(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]


class BrokenNotes(Exception):
    @property
    def __notes__(self) -> list[str]:  # type: ignore[override]
        raise KeyboardInterrupt


class BrokenCause(Exception):
    @property
    def __cause__(self) -> None:  # type: ignore[override]
        raise SystemExit(1)


class Meta(type):
    @property
    def __module__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("no module")


class NoModule(Exception, metaclass=Meta):
    pass


class OddModule(Exception):
    __module__ = 5  # type: ignore[assignment]


def local_class() -> type[Exception]:
    class Local(Exception):
        pass

    return Local


def group(levels: int) -> BaseException:
    error: Exception = ValueError("innermost")
    for _ in range(levels):
        error = ExceptionGroup("group", [error, KeyError("beside")])
    return error


def chain(length: int) -> BaseException:
    error = first = ValueError("0")
    for number in range(1, length):
        error.__context__ = ValueError(str(number))
        error = error.__context__
    return first


def ring() -> BaseException:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    return one


@pytest.mark.parametrize(
    "error",
    [
        ValueError("plain"),
        BrokenStr("x"),
        ExitingStr(),
        StrOfAnotherType(),
        BrokenNotes(),
        BrokenCause(),
        NoModule("x"),
        OddModule("x"),
        type("N" * 5000, (Exception,), {})("x"),
        type("é" * 900, (Exception,), {})("x"),
        local_class()("x"),
        group(3),
        group(60),
        chain(20_000),
        ring(),
        ValueError("\0\ud800😀"),
        ValueError("x" * 10_000_000),
        ValueError("\ud83d" * 50_000 + "\ude00" * 50_000),
        SyntaxError("bad", ("file", None, None, None)),
        SystemExit(),
        KeyboardInterrupt(),
    ],
    ids=lambda error: f"{type(error).__qualname__[:20]}-{len(error.args)}",
)
@pytest.mark.parametrize("limit", [1024, 64 * 1024])
def test_an_error_is_always_stored_within_its_limit(error: BaseException, limit: int) -> None:
    text = dump_error(raised(error), limit=limit, redact=None)
    assert text.isascii()
    assert len(text) <= limit
    stored = json.loads(text)
    assert stored.keys() == {"class", "traceback"}
    assert stored["traceback"]


def test_an_error_names_its_class_and_shows_where_and_what() -> None:
    def fail() -> None:
        raise local_class()("the message")

    with pytest.raises(Exception, match="the message") as caught:
        fail()
    stored = json.loads(dump_error(caught.value, limit=64 * 1024, redact=None))
    assert stored["class"] == f"{__name__}.local_class.<locals>.Local"
    assert "in fail" in stored["traceback"]
    assert stored["traceback"].endswith("the message\n")


def test_a_long_error_keeps_its_beginning_and_its_end() -> None:
    text = dump_error(raised(ValueError("begin" + "é" * 1_000_000 + "the end")), limit=4096, redact=None)
    traceback = json.loads(text)["traceback"]
    assert traceback.startswith("Traceback (most recent call last)")
    assert traceback.endswith("the end\n")
    assert "characters left out" in traceback
    assert len(text) > 1500


def test_no_local_values_are_stored() -> None:
    """Fault 47 of docs/faults.md: secrets in arguments and tracebacks."""
    secret = "".join(["hun", "ter2"])
    error = raised(ValueError(len(secret)))
    assert secret not in dump_error(error, limit=64 * 1024, redact=None)


def test_deep_recursion_is_stored() -> None:
    def down() -> None:
        down()

    with pytest.raises(RecursionError) as caught:
        down()
    assert "RecursionError" in json.loads(dump_error(caught.value, limit=64 * 1024, redact=None))["traceback"]


def test_a_cancel_is_known_by_how_its_text_begins() -> None:
    text = dump_error(TaskCancelled("The task was cancelled."), limit=4096, redact=None)
    assert text.startswith(CANCELLED_START)
    assert decode(text)["class"] == CANCELLED
    assert not dump_error(TaskExpired(), limit=4096, redact=None).startswith(CANCELLED_START)
