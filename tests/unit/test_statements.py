"""What holds for every statement of ``store/queries/``."""

import inspect
import re
from importlib.resources import files

import asyncpg

from aiotasks.store.statements import load


def test_no_time_is_that_of_the_transactions_start() -> None:
    """A transaction may have been open for long (a test's, a caller's atomic()): its now() is over."""
    queries = sorted((files("aiotasks.store") / "queries").iterdir(), key=lambda query: query.name)
    assert queries
    for query in queries:
        sql = load(query.name.removesuffix(".sql")).sql
        assert not re.search(r"\bnow\(\)|current_timestamp|transaction_timestamp|localtime", sql, re.I), query


def test_long_values_are_written_once() -> None:
    """Django's drivers write a parameter's value into the statement wherever it is named."""
    for name, long_ones in {
        "insert_jobs": (1, 2, 3),
        "finish_jobs": (1, 2, 4, 5),
        "insert_job": (7, 8),
        "insert_unique_job": (7, 8),
        "insert_unique_jobs": (1, 2, 3, 4),
        "replace_waiting_jobs": (3, 4),
    }.items():
        text = load(name).django_sql
        assert [text.count(f"%(p{number})s") for number in long_ones] == [1] * len(long_ones), name


def test_every_statement_stays_prepared() -> None:
    """asyncpg prepares a longer text anew at each call: claim_keyed would be planned for 6.5 ms each time."""
    default = inspect.signature(asyncpg.connect).parameters["max_cacheable_statement_size"].default
    for query in (files("aiotasks.store") / "queries").iterdir():
        assert len(load(query.name.removesuffix(".sql")).sql) <= default, query
