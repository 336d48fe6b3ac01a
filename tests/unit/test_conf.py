"""Options: every one's good and bad values, told by name."""

from dataclasses import FrozenInstanceError, fields
from datetime import timedelta
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from aiotasks.backoff import Exponential as exponential_class
from aiotasks.backoff import exponential, linear
from aiotasks.conf import MovedTasks, Options

NAN = float("nan")

# Per option: values that are taken, and values that are refused.
VALUES: dict[str, tuple[list[Any], list[Any]]] = {
    "DATABASE": (["default", "other"], ["", None, 5, b"default", ["default"]]),
    "LISTEN_DATABASE": ([None, "direct"], ["", 5, False, b"direct"]),
    "POOL_MIN_SIZE": ([0, 10], [-1, 1001, "3", True, 2.5, None]),
    "POOL_MAX_SIZE": ([2, 1000], [0, 1, 1001, "3", True, 2.5]),
    "STATEMENT_CACHE_SIZE": ([0, 10_000], [-1, 10_001, "0", False]),
    "COMMAND_TIMEOUT": ([0.1, 3600, 5], [0, -1, 3601, NAN, float("inf"), "5", True, None]),
    "NOTIFY": ([True, False], [0, 1, "no", None]),
    "POLL_INTERVAL": ([0.05, 3600], [0, 0.01, 3601, NAN, "1", True]),
    "SLOW_TASK": ([None, 0.001, 10, 86_400], [0, -1, 86_401, NAN, "10", True]),
    "LOOP_TIMEOUT": ([None, 1, 300.0, 86_400], [0, 0.9, 86_401, NAN, "300", True]),
    "LEASE_TIMEOUT": ([0.5, 86_400], [0, 0.4, 86_401, NAN, "30", True]),
    "MAX_CRASHES": ([0, 32_000], [-1, 32_001, "3", True, 1.5]),
    "MAX_ATTEMPTS": ([1, 5, 32_000], [0, -1, 32_001, "3", True, 1.5, None]),
    "BACKOFF": (
        [None, "mysite.tasks.backoff", print, exponential(), linear()],
        ["backoff", "", "..", 5, True, [], exponential_class],
    ),
    "ASYNC_DB_THREADS": ([1, 1000], [0, 1001, "8", True]),
    "KEEP_SUCCESSFUL": ([0, 100, timedelta(days=1), None], [-1, 4e9, NAN, float("inf"), "1d", True]),
    "KEEP_FAILED": ([0.5, timedelta(0), None], [timedelta(-1), timedelta.max, NAN, float("inf"), "1d", True]),
    "MOVED_TASKS": (
        [{}, {"old.module.task": "new.task", "other.task": "new.task"}],
        [
            None,
            ["a.b"],
            "a.b",
            {"a": "b.c"},
            {"a.b": "c"},
            {"a.b": "c.d e"},
            {5: "a.b"},
            {"a.b": None},
            {"a.b": "a.b"},
            {"a.b": "c.d", "c.d": "e.f"},
        ],
    ),
    "MAX_ARGUMENT_SIZE": ([2, 256 * 1024**2], [1, 256 * 1024**2 + 1, "1MB", True]),
    "MAX_RESULT_SIZE": ([4, 256 * 1024**2], [3, 256 * 1024**2 + 1, "1MB", True]),
    "MAX_ERROR_SIZE": ([1024, 16 * 1024**2], [1023, 16 * 1024**2 + 1, "1MB", True]),
    "SCHEDULES": (
        [None, False, ["mysite.reports", "mysite"], ("mysite.reports",)],
        [True, 0, [], (), "mysite.reports", [5], ["a b"], [""], ["a..b"], [None]],
    ),
    "REDACT": (["mysite.privacy.redact", None], ["redact", "", "..", "mysite.", "a b.c", 5, True, [], print]),
}


def read(alias: str = "default", **options: Any) -> Options:
    return Options.from_params(alias, {"OPTIONS": options})


def test_every_option_is_tried_here() -> None:
    assert {field.name.upper() for field in fields(Options)} == VALUES.keys()


@pytest.mark.parametrize(("name", "value"), [(name, v) for name, (good, _) in VALUES.items() for v in good])
def test_good_values(name: str, value: Any) -> None:
    found = getattr(read(**{name: value}), name.lower())
    kept = value.total_seconds() if isinstance(value, timedelta) else value
    assert found == (tuple(kept) if isinstance(kept, list) else kept)
    default = getattr(Options(), name.lower())
    if value is not None and default is not None:
        assert type(found) is type(default)


@pytest.mark.parametrize(("name", "value"), [(name, v) for name, (_, bad) in VALUES.items() for v in bad])
def test_bad_values_are_told_with_their_option(name: str, value: Any) -> None:
    with pytest.raises(ImproperlyConfigured) as caught:
        read("emails", **{name: value})
    told = str(caught.value)
    assert told.startswith(f"TASKS['emails']['OPTIONS'][{name!r}] must be ")
    assert told.endswith(f"not {value!r}.")


def test_unknown_options_are_told_by_name_with_those_there_are() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"\['OPTIONS'\] has no option 'pool_max_size'") as caught:
        read(pool_max_size=3)
    assert all(name in str(caught.value) for name in VALUES)


@pytest.mark.parametrize("options", [None, [], "x", 5])
def test_options_must_be_a_dict(options: Any) -> None:
    with pytest.raises(ImproperlyConfigured, match="must be a dict"):
        Options.from_params("default", {"OPTIONS": options})


def test_the_pools_sizes_must_fit() -> None:
    with pytest.raises(ImproperlyConfigured, match=r"POOL_MIN_SIZE \(11\) is above POOL_MAX_SIZE \(10\)"):
        read(POOL_MIN_SIZE=11)


def test_two_options_may_stand_beside_the_backend() -> None:
    """Where Django's proposal for retries has them."""
    beside = Options.from_params(
        "default", {"MAX_ATTEMPTS": 3, "BACKOFF": "a.b", "OPTIONS": {"NOTIFY": False}}
    )
    assert beside == read(MAX_ATTEMPTS=3, BACKOFF="a.b", NOTIFY=False)
    assert (
        Options.from_params("default", {"MAX_ATTEMPTS": 3, "OPTIONS": {"MAX_ATTEMPTS": 3}}).max_attempts == 3
    )
    with pytest.raises(ImproperlyConfigured) as caught:
        Options.from_params("default", {"MAX_ATTEMPTS": 3, "OPTIONS": {"MAX_ATTEMPTS": 4}})
    assert "is 3, and" in str(caught.value)
    with pytest.raises(
        ImproperlyConfigured, match=r"TASKS\['emails'\]\['MAX_ATTEMPTS'\] must be a whole number"
    ):
        Options.from_params("emails", {"MAX_ATTEMPTS": "3"})


def test_the_defaults() -> None:
    assert Options.from_params("default", {}) == read() == Options()


def test_equal_options_are_one_object_and_cannot_be_changed() -> None:
    assert read(POOL_MAX_SIZE=7) is read(POOL_MAX_SIZE=7)
    assert read(POOL_MAX_SIZE=7) == read("other", POOL_MAX_SIZE=7)
    assert read(POOL_MAX_SIZE=7) != read(POOL_MAX_SIZE=8)
    assert hash(read(POOL_MAX_SIZE=7)) == hash(Options(pool_max_size=7))
    moved = {"old.module.task": "new.module.task"}
    assert read(MOVED_TASKS=moved) is read(MOVED_TASKS=dict(moved))
    assert hash(read(MOVED_TASKS=moved)) == hash(Options(moved_tasks=MovedTasks(moved)))
    assert read(MOVED_TASKS=moved) != read()
    with pytest.raises(FrozenInstanceError):
        read().notify = False  # type: ignore[misc]
