"""Metadata without a database: what is refused, how changes are merged, and what the saver gets to write."""

import json
import math
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType, SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from django.http import QueryDict
from hypothesis import given
from hypothesis import strategies as st

from aiotasks.context import PostgresTaskContext
from aiotasks.exceptions import InvalidRow
from aiotasks.metadata import running as running_module
from aiotasks.metadata.progress import MAX_MESSAGE, Meter
from aiotasks.metadata.running import INTERVAL, RunningMetadata
from aiotasks.metadata.values import MAX_SIZE, changed, dump_metadata, merge, public, read_row

# --- Values


@pytest.mark.parametrize(
    ("metadata", "kind", "words"),
    [
        ([("a", 1)], TypeError, "metadata must be a dict, not"),
        ("a", TypeError, "metadata must be a dict"),
        ({1: 2}, TypeError, "a key of metadata must be a string, not 1"),
        ({"a": 1, "_b": 2}, ValueError, "metadata has the key '_b'"),
        ({"_": 1}, ValueError, "metadata has the key '_'"),
        ({"a": [0, datetime.min]}, TypeError, r"metadata\['a'\]\[1\]"),
        ({"a": math.nan}, ValueError, r"metadata\['a'\] is nan"),
        (QueryDict("a=1"), TypeError, "metadata: "),
        (
            {"a": "x" * MAX_SIZE},
            ValueError,
            f"metadata takes {MAX_SIZE + 8} bytes as JSON; the limit is 65536",
        ),
    ],
)
def test_what_is_refused(metadata: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        dump_metadata(metadata)


def test_what_is_kept_is_a_copy_as_it_is_read_back() -> None:
    given: dict[str, Any] = {"b": (1, 2), "a": {"x": b"y"}, "ä": "\0"}
    plain, text = dump_metadata(given)
    assert plain == json.loads(text) == {"b": [1, 2], "a": {"x": "y"}, "ä": "\0"}
    assert list(plain) == ["b", "a", "ä"]
    empty: dict[str, Any] = {}
    copy, text = dump_metadata(empty)
    assert (copy, text) == ({}, "{}")
    assert copy is not empty
    assert dump_metadata(MappingProxyType({"a": 1}))[0] == dump_metadata(OrderedDict(a=1))[0] == {"a": 1}
    assert len(dump_metadata({"a": "x" * (MAX_SIZE - 8)})[1]) == MAX_SIZE


@pytest.mark.parametrize("text", ["[]", "1", '"a"', "null", "[" * 100_000, "1" * 5000])
def test_a_row_that_others_have_written_is_reported(text: str) -> None:
    with pytest.raises(InvalidRow, match="its metadata isn't"):
        read_row(text, uuid4())


def test_a_merge_keeps_what_it_does_not_name_and_keys_of_aiotasks() -> None:
    assert merge(None, {}, "id") is None
    assert merge(None, {"a": 1}, "id") == '{"a":1}'
    assert merge('{"_t": 0, "a": 1, "b": 2}', {"a": 3}, "id") == '{"_t":0,"a":3,"b":2}'
    with pytest.raises(ValueError, match=r"The metadata of task id would take \d+ bytes"):
        merge(json.dumps({"b": "x" * (MAX_SIZE - 10)}), {"a": 1}, "id")
    assert public({"_t": 0, "a": {"_x": 1}}) == {"a": {"_x": 1}}


KEYS = st.sampled_from("abcd")
VALUES = st.one_of(
    st.booleans(), st.integers(0, 1), st.sampled_from([0.0, -0.0, 1.0, "1"]), st.lists(st.integers(0, 1))
)
STATES = st.dictionaries(KEYS, VALUES)


@given(STATES, STATES, STATES)
def test_a_change_is_made_by_key(row: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> None:
    merged = changed(row, before, after)
    for key in "abcd":
        if repr(before.get(key)) != repr(after.get(key)):
            assert repr(merged.get(key)) == repr(after.get(key))
        else:
            assert merged.get(key) is row.get(key)


# --- A running attempt, its saver and others


class Row:
    """A row, and a saver that writes it when it is told to."""

    def __init__(self, text: str | None = None) -> None:
        self.text = text
        self.asked = 0
        self.writes = 0
        self.own = RunningMetadata(uuid4(), uuid4(), text, self)

    def save_soon(self, metadata: RunningMetadata) -> None:
        assert metadata is self.own
        self.asked += 1

    def save(self) -> None:
        """As the saver does: compare and swap."""
        while self.own.begin():
            if self.own.seen == self.text:
                self.writes += 1
                self.text = self.own.text
                self.own.written()
            else:
                self.own.refused(self.text)

    def write(self, **values: Any) -> None:
        """As somebody else."""
        self.text = merge(self.text, values, "id")

    @property
    def values(self) -> dict[str, Any]:
        return read_row(self.text, "id")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = 1000.0

    def pass_on(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(running_module, "monotonic", lambda: now)
    return pass_on


def test_what_nobody_touches_is_neither_read_nor_written() -> None:
    row = Row("nonsense")
    assert row.own.is_untouched
    assert row.own.current() == "nonsense"
    assert not row.own.begin()


def test_what_is_only_looked_at_is_not_written() -> None:
    row = Row('{"_t":0, "a":[1]}')
    assert row.own.values == {"a": [1]}
    assert row.own.close() is None
    row.save()
    assert (row.writes, row.asked) == (0, 0)


def test_changes_are_saved_and_removals() -> None:
    row = Row('{"_t":0,"a":[1],"b":2}')
    row.own.values["a"].append(3)
    del row.own.values["b"]
    row.own.save()
    row.own.values["later"] = 1  # not saved yet
    row.save()
    assert row.values == {"_t": 0, "a": [1, 3]}
    row.own.values.clear()
    assert row.own.close() is None
    row.save()
    assert (row.text, row.writes) == ('{"_t":0}', 2)


def test_a_change_deep_inside_is_one() -> None:
    row = Row('{"a":{"b":[1]}}')
    row.own.values["a"]["b"].append(2)
    row.own.save()
    row.save()
    assert row.values == {"a": {"b": [1, 2]}}
    row.own.values["a"]["b"].append(3)
    row.own.close()
    row.save()
    assert row.values == {"a": {"b": [1, 2, 3]}}


def test_what_others_change_after_a_save_is_theirs() -> None:
    row = Row()
    row.own.values["a"] = 1
    row.own.save()
    row.save()
    row.write(a=2)
    row.own.values["b"] = 1
    row.own.save()
    row.save()
    assert row.values == {"a": 2, "b": 1}


def test_all_removed_is_null() -> None:
    row = Row('{"a":1}')
    row.own.values.clear()
    row.own.save()
    row.save()
    assert row.text is None


def test_the_saver_is_asked_once_until_it_begins() -> None:
    row = Row()
    for number in range(3):
        row.own.values["a"] = number
        row.own.save()
    assert row.asked == 1
    row.save()
    row.own.save()
    assert (row.asked, row.values) == (2, {"a": 2})


def test_a_bad_value_is_reported_at_once_and_the_last_good_state_stays() -> None:
    row = Row()
    row.own.values["a"] = 1
    row.own.save()
    row.own.values["b"] = object()
    with pytest.raises(TypeError, match=r"metadata\['b'\]"):
        row.own.save()
    assert row.own.current() is None  # the row's
    assert isinstance(row.own.close(), TypeError)
    row.save()
    assert row.values == {"a": 1}


def test_what_a_body_does_after_its_end_is_ignored() -> None:
    row = Row()
    row.own.values["a"] = 1
    row.own.close()
    row.own.values["a"] = 2
    row.own.save()
    row.own.close()
    row.save()
    assert (row.values, row.asked) == ({"a": 1}, 0)


def test_a_write_whose_reply_was_lost_is_not_repeated() -> None:
    row = Row()
    row.own.values["a"] = 1
    row.own.save()
    assert row.own.begin()
    row.text = row.own.text  # and nobody knows
    row.write(b=2)
    row.save()
    assert (row.values, row.writes) == ({"a": 1, "b": 2}, 0)


def test_a_row_that_others_have_broken_stays() -> None:
    row = Row()
    row.own.values["a"] = 1
    row.own.save()
    row.text = "[]"
    with pytest.raises(InvalidRow):
        row.save()


def test_a_row_that_others_had_broken_before_stays_too() -> None:
    row = Row("[1]")
    with pytest.raises(InvalidRow):
        row.own.progress(1, 2, "")
    assert isinstance(row.own.close(), InvalidRow)
    row.save()
    assert row.text == "[1]"


@given(
    STATES,
    st.lists(
        st.one_of(
            st.tuples(st.just("set"), KEYS, VALUES),
            st.tuples(st.just("remove"), KEYS, st.none()),
            st.tuples(st.just("other"), st.sampled_from("cdef"), VALUES),
            st.tuples(st.sampled_from(["ask", "save"]), st.none(), st.none()),
        )
    ),
)
def test_nothing_of_either_side_is_lost(start: dict[str, Any], steps: list[tuple[str, Any, Any]]) -> None:
    """The last change of a key wins: the owner's, by the save that has it, or another's after that."""
    row = Row(merge(None, start, "id"))
    expected, mine, dirty = dict(start), dict(start), dict(start)
    asked = dict(start)

    def saved() -> None:
        nonlocal mine
        for key in {*mine, *asked}:
            if repr(mine.get(key)) != repr(asked.get(key)):
                expected.pop(key, None)
                if key in asked:
                    expected[key] = asked[key]
        mine = dict(asked)

    for what, key, value in steps:
        if what == "set":
            row.own.values[key] = dirty[key] = value
        elif what == "remove":
            row.own.values.pop(key, None)
            dirty.pop(key, None)
        elif what == "other":
            row.write(**{key: value})
            expected[key] = value
        elif what == "ask":
            row.own.save()
            asked = dict(dirty)
        else:
            row.save()
            saved()
    row.own.close()
    asked = dict(dirty)
    row.save()
    saved()
    assert {key: repr(value) for key, value in row.values.items()} == {
        key: repr(value) for key, value in expected.items()
    }


# --- The limit


def test_what_both_sides_add_is_no_larger_than_the_limit() -> None:
    """It is raised once; what the row has stays, until there is room."""
    row = Row()
    row.own.values["body"] = "b" * 40_000
    row.own.save()
    row.write(operator="o" * 40_000)
    with pytest.raises(ValueError, match="would take 80025 bytes as JSON; the limit is 65536"):
        row.save()
    row.own.values["more"] = 1
    row.own.save()
    row.save()
    assert row.values.keys() == {"operator"}
    row.write(operator="")
    row.own.refused(row.text)
    row.own.close()
    row.save()
    assert row.values.keys() == {"operator", "body", "more"}


def test_an_attempt_whose_row_is_too_large_already_saves() -> None:
    row = Row(json.dumps({"operator": "o" * 80_000, "body": "b" * 40_000}))
    row.own.progress(1, 10, "")
    row.save()
    assert row.values["progress"]["done"] == 1
    row.own.values["body"] = "b" * 50_000
    with pytest.raises(ValueError, match="the limit is 124"):
        row.own.save()
    row.own.values["body"] = ""
    row.own.save()
    row.save()
    assert row.values["body"] == ""


def test_others_may_make_a_row_smaller_that_is_too_large() -> None:
    text = json.dumps({"a": "x" * 80_000})
    assert merge(text, {"a": "x" * 70_000}, "id") == '{"a":"' + "x" * 70_000 + '"}'
    with pytest.raises(ValueError, match="would take"):
        merge(text, {"b": 1}, "id")


# --- Progress


def test_most_calls_of_progress_only_note_it(clock: Callable[[float], None]) -> None:
    row = Row()
    for number in range(10):
        row.own.progress(number, 10, "")
        clock(INTERVAL / 20)
    assert row.asked == 1
    row.save()
    assert row.values["progress"]["done"] == 9  # the saver looks at the latest
    row.own.progress(10, 10, "")
    assert row.asked == 1
    row.save()  # as an INTERVAL after each save
    assert row.values["progress"]["done"] == 10
    clock(INTERVAL)
    row.own.progress(11, 10, "")
    assert row.asked == 2


def test_the_last_progress_is_saved_at_the_end(clock: Callable[[float], None]) -> None:
    row = Row()
    row.own.progress(1, 10, "one")
    row.save()
    clock(INTERVAL / 2)
    row.own.progress(2, 10, "two")
    assert json.loads(row.own.current() or "")["progress"]["message"] == "two"
    row.own.close()
    row.save()
    assert row.values["progress"] == {"done": 2, "total": 10, "message": "two", "rate": 20.0, "eta": 0.4}
    assert row.own.values["progress"] == row.values["progress"]


def test_the_last_progress_is_saved_beside_what_cannot_be(clock: Callable[[float], None]) -> None:
    row = Row()
    row.own.progress(1, 2, "")
    row.own.values["bad"] = object()
    row.own.progress(2, 2, "")
    assert isinstance(row.own.close(), TypeError)
    row.save()
    assert row.values["progress"]["done"] == 2


def test_a_bad_progress_keeps_nothing_else_from_being_saved(clock: Callable[[float], None]) -> None:
    row = Row()
    with pytest.raises(TypeError, match="done must be a number, not 'x'"):
        row.own.progress("x", 2, "")
    row.own.values["a"] = 1
    row.own.save()
    row.own.progress(1, math.nan, "")  # only noted
    row.save()
    assert row.values == {"a": 1}
    assert row.own.close() is None


def test_a_bad_progress_that_was_only_noted_is_ignored(clock: Callable[[float], None]) -> None:
    row = Row()
    row.own.progress(1, 10, "")
    row.save()
    row.own.progress(math.nan, 10, "")
    row.own.values["url"] = "x"
    row.own.progress(BadNumber(), 10, "")
    assert row.own.close() is None
    row.save()
    assert (row.values["url"], row.values["progress"]["done"]) == ("x", 1)


def test_a_progress_that_was_only_noted_saves_no_other_key(clock: Callable[[float], None]) -> None:
    """The saver, which looks at it, may be another thread than the body's."""
    row = Row()
    row.own.progress(1, 10, "")
    row.save()
    row.own.values["url"] = "x"
    row.own.progress(2, 10, "")
    row.save()
    assert (row.values["progress"]["done"], row.values.get("url")) == (2, None)
    clock(INTERVAL)
    row.own.progress(3, 10, "")
    row.save()
    assert (row.values["progress"]["done"], row.values["url"]) == (3, "x")


class BadNumber:
    def __float__(self) -> float:
        raise RuntimeError("a tensor of two")


def test_a_message_is_cut_that_was_only_noted(clock: Callable[[float], None]) -> None:
    row = Row()
    row.own.progress(1, 10, "")
    row.own.progress(2, 10, "x" * 3_000_000)
    row.save()
    assert row.values["progress"]["message"] == "x" * MAX_MESSAGE


def test_a_task_may_change_its_progress_by_hand(clock: Callable[[float], None]) -> None:
    row = Row()
    row.own.progress(1, 2, "")
    row.own.values["progress"]["file"] = "a.csv"
    row.own.save()
    row.save()
    assert row.values["progress"]["file"] == "a.csv"
    row.own.progress(2, 2, "")
    row.save()  # by the saver's own look
    row.own.values["progress"]["file"] = "b.csv"
    row.own.save()
    row.save()
    assert row.values["progress"]["file"] == "b.csv"


@pytest.mark.parametrize(
    ("report", "kind", "words"),
    [
        (("1", 2, ""), TypeError, "done must be a number"),
        ((None, 2, ""), TypeError, "done must be a number"),
        ((1, [], ""), TypeError, "total must be a number"),
        ((math.inf, 2, ""), ValueError, "done must be a finite number"),
        ((1, 10**400, ""), ValueError, "total must be a finite number"),
        ((1, 2, None), TypeError, "message must be a string"),
    ],
)
def test_what_is_no_progress(report: tuple[Any, Any, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        Meter().show((*report, 0.0))


def test_numbers_of_other_kinds() -> None:
    shown = Meter().show((Decimal("0.5"), Fraction(3, 2), "half", 0.0))
    assert (shown["done"], shown["total"]) == (0.5, 1.5)
    assert Meter().show((True, None, "", 0.0)) | {"done": 1} == {
        "done": 1,
        "total": None,
        "message": "",
        "rate": None,
        "eta": None,
    }


def test_the_rate_follows_a_change_of_speed() -> None:
    meter = Meter()
    for second in range(1000):
        shown = meter.show((second * 10, 100_000, "", float(second)))
    assert shown["rate"] == 10.0
    assert shown["eta"] == pytest.approx((100_000 - 9990) / 10, rel=0.001)
    for second in range(1000, 1100):
        shown = meter.show((9990 + (second - 999) * 2, 100_000, "", float(second)))
    assert 2.0 < shown["rate"] < 2.5


def test_the_rate_counts_from_the_first_report_and_anew_after_a_step_back() -> None:
    meter = Meter()
    assert meter.show((500, 1000, "", 10.0))["rate"] is None
    assert meter.show((510, 1000, "", 11.0))["rate"] == 10.0
    assert meter.show((0, 1000, "another file", 12.0))["rate"] is None
    assert meter.show((1, 1000, "", 13.0)) | {} == {
        "done": 1,
        "total": 1000,
        "message": "",
        "rate": 1.0,
        "eta": 999.0,
    }
    assert meter.show((1001, 1000, "", 14.0))["eta"] == 0.0


@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(-(10**308), 10**308), st.floats(allow_nan=False, allow_infinity=False)),
            st.one_of(st.none(), st.integers(-(10**308), 10**308)),
            st.floats(0, 1e9),
        )
    )
)
def test_whatever_is_reported_is_json(reports: list[tuple[float, float | None, float]]) -> None:
    meter, at = Meter(), 0.0
    for done, total, passed in reports:
        at += passed
        dump_metadata(meter.show((done, total, "", at)))


# --- Keys of aiotasks' own


def context_of(row: Row) -> PostgresTaskContext:
    running: Any = SimpleNamespace(metadata=row.own)
    return PostgresTaskContext(task_result=object(), running=running)  # type: ignore[arg-type]


def test_a_context_has_the_tick_of_its_schedule(settings: Any) -> None:
    row = Row('{"a": 1, "_schedule": "nightly", "_scheduled_for": "2026-11-30T02:00:00+00:00"}')
    context = context_of(row)
    assert context.schedule == "nightly"
    assert context.scheduled_for == datetime(2026, 11, 30, 2, tzinfo=UTC)
    context.metadata["b"] = 2
    context.save_metadata()
    row.save()
    assert (row.values["_schedule"], row.values["b"]) == ("nightly", 2)
    assert (context.schedule, context.metadata) == ("nightly", {"a": 1, "b": 2})
    settings.USE_TZ = False
    settings.TIME_ZONE = "Asia/Tokyo"
    assert context.scheduled_for == datetime(2026, 11, 30, 11)


def test_a_context_of_no_schedule_has_no_tick() -> None:
    for row in (Row(), Row('{"a": 1}'), Row('{"_schedule": 5, "_scheduled_for": 5}')):
        assert (context_of(row).schedule, context_of(row).scheduled_for) == (None, None)
    without = PostgresTaskContext(task_result=object())  # type: ignore[arg-type]
    assert (without.schedule, without.scheduled_for) == (None, None)
