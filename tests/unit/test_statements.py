"""What holds for every statement of ``store/queries/``."""

import re
from importlib.resources import files

from aiotasks.store.statements import load


def test_no_time_is_that_of_the_transactions_start() -> None:
    """A transaction may have been open for long (a test's, a caller's atomic()): its now() is over."""
    queries = sorted((files("aiotasks.store") / "queries").iterdir(), key=lambda query: query.name)
    assert queries
    for query in queries:
        sql = load(query.name.removesuffix(".sql")).sql
        assert not re.search(r"\bnow\(\)|current_timestamp|transaction_timestamp|localtime", sql, re.I), query
