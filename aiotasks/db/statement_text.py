"""Questions that a statement's text answers: may it leave its session changed, may it write?"""

import re
from functools import lru_cache
from typing import Any

__all__ = ["changes_session", "may_write"]

# Characters from which on a statement's answer isn't cached, because a bulk insert has a text of its own.
LONG = 4000

_SKIPPED = r"(?:\s|\(|--[^\n]*(?:\n|\Z)|/\*.*?\*/)*+"

# Statements that leave a session unchanged, by their beginning. BEGIN, COMMIT and the like are among them,
# because the connection knows whether a transaction is open.
_HARMLESS_STATEMENT = re.compile(
    _SKIPPED
    + r"""(?:
        \Z
        | (?: select | insert | update | delete | merge | with | values | table | explain
            | savepoint | release | rollback | commit | begin | start | end | abort
            | replace | lock | truncate | copy | notify | analyze | vacuum | reindex | cluster | refresh
            | show | fetch | move | close | comment | grant | revoke | alter | drop | checkpoint ) \b
        | set \s+ (?: local | transaction | constraints ) \b
        | create \s+ (?! (?: or \s+ replace \s+ )? (?: (?: global | local ) \s+ )? temp )
    )""",
    re.VERBOSE | re.DOTALL,
)

# Anywhere in a statement: calls of functions, and creations, that change the session.
_SUSPICIOUS = (
    "set_config",
    "advisory_",
    "setseed",
    "set_limit",
    "set_cur",
    "dblink",
    "pg_temp",
    "create",
    "into",
)
_CHANGE = re.compile(
    r"""
    set_config"? \s* \( (?! (?: '[^']*' | [^()'] | \( [^()]* \) )*? , \s* (?: true | 't(?:rue)?' ) \s* \) )
    | \bpg_(?:try_)?advisory_lock
    | \b(?: setseed | set_limit | set_curcfg | set_curdict | dblink_connect\w* )"? \s* \(
    | \binto \s+ (?: (?: global | local ) \s+ )? temp (?: orary )? \b
    | \bcreate \s+ (?: or \s+ replace \s+ )? (?: (?: global | local ) \s+ )? temp (?: orary )? \b
    | \bpg_temp\b
    """,
    re.VERBOSE,
)

# SELECT function(…), and SELECT … FROM function(…): the text doesn't show what the function does, so only
# PostgreSQL's own common functions count as harmless.
_SELECT = re.compile(_SKIPPED + r"(?:copy|select|values|with|table|explain)\b", re.DOTALL)
_LITERAL = re.compile(r"'[^']*'")
_FROM = re.compile(r"\bfrom\b")
_CALL = re.compile(r'([\w$]+)"?\s*\(')
_CALL_IN_FROM = re.compile(r'from\s+(?:lateral\s+|only\s+)?(?:"?[\w$]+"?\s*\.\s*)*"?([\w$]+)"?\s*\(')
_FIRST_CALL = re.compile(r'\A\s*select\s+(?:"?[\w$]+"?\s*\.\s*)*"?([\w$]+)"?\s*\(')
_HARMLESS_PREFIX = re.compile(
    r"""
    pg_(?! advisory_lock | try_advisory_lock | replication_origin_session | temp )
    | (?: array | bit | bool | concat | covar | current | date | generate | has | inet | jsonb? | justify
        | make | num | percentile | quote | regexp? | regr | row | session | sha | st | stddev | string | time
        | to | ts | txid | uuid | var | width | xml ) _
    """,
    re.VERBOSE,
)
# Functions, types that look like them in a cast, and words that a parenthesis may follow.
_NAMES = """
    abs acos age all and any array as asc ascii asin atan atan2 avg bigint bit_length btrim by cardinality
    case cast cbrt ceil ceiling char char_length character character_length chr clock_timestamp coalesce
    col_description concat convert_from convert_to copy corr cos count crypt cube cume_dist currval daterange
    date decimal decode degrees dense_rank desc distinct div else encode every except exists exp extract
    factorial filter first_value floor format format_type from gcd gen_random_uuid greatest group grouping
    hstore in initcap int4range int8range integer intersect interval isempty isfinite join lag last_value
    lastval lateral lcm lead least left length ln log log10 lower lower_inc lpad ltrim max md5 min mod mode
    nextval not now nth_value ntile nullif numeric numrange obj_description octet_length on or order over
    overlay phraseto_tsquery pi plainto_tsquery position power radians random random_normal rank repeat
    replace reverse right rollup round row rpad rtrim select set_config sets setval setweight sha224 sha256
    sha384 sha512 sign similarity sin some split_part sqrt starts_with statement_timestamp strip strpos
    substr substring sum tan text then timeofday timestamp timestamptz transaction_timestamp translate trim
    trunc tsrange tstzrange unaccent union unnest upper upper_inc using uuidv4 uuidv7 values varchar variance
    version websearch_to_tsquery when where within word_similarity
"""
_HARMLESS_NAMES = frozenset(_NAMES.split())


# Statements that write nothing, by their beginning, unless a word or a function in them does.
_READING_STATEMENT = re.compile(
    _SKIPPED
    + r"(?:\Z|(?:select|values|table|show|explain|declare|fetch|close|savepoint|release|rollback|set|with)"
    + r"\b)",
    re.DOTALL,
)
_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_QUOTED_NAME = re.compile(r'"[^"]*"')
_ROW_LOCK = re.compile(r"\bfor\s+(?:no\s+key\s+)?update\b")
_WRITING_WORD = re.compile(r"\b(?:insert|update|delete|merge|into)\b")
_WRITING_CALL = re.compile(
    r"\b(?:nextval|setval|pg_notify|dblink_exec|lowrite|lo_(?:creat|create|from_bytea|import|put|truncate|unlink))"
    r'"?\s*\('
)


def may_write(statement: str) -> bool:
    """Return whether ``statement`` may write to the database.

    PostgreSQL's own functions that write are known; those of the site aren't, and don't count.
    """
    text = _COMMENT.sub(" ", _LITERAL.sub("''", statement.lower()))
    if _WRITING_CALL.search(text):
        return True
    text = _ROW_LOCK.sub(" ", _QUOTED_NAME.sub('""', text))
    return _WRITING_WORD.search(text) is not None or any(
        _READING_STATEMENT.match(part) is None for part in text.split(";")
    )


def changes_session(statement: Any, raw: Any = None) -> bool:
    """Return whether ``statement``, a str or an object that psycopg turns into one, may change its session.

    A cautious answer: a statement that isn't known to be harmless counts as a change. The text doesn't show
    the effects of a trigger or a rule when a table is read or written. ``raw`` is the driver's connection.
    """
    if not isinstance(statement, str):
        try:
            statement = statement.decode() if isinstance(statement, bytes) else statement.as_string(raw)
        except (AttributeError, TypeError, UnicodeDecodeError):
            return True
    return _changes_cached(statement) if len(statement) < LONG else _changes(statement)


def _changes(statement: str) -> bool:
    text = statement.lower()
    if ";" in text:
        return any(_part_changes(part) for part in _LITERAL.sub("''", text).split(";"))
    return _part_changes(text)


def _part_changes(text: str) -> bool:
    if _HARMLESS_STATEMENT.match(text) is None:
        return True
    if any(word in text for word in _SUSPICIOUS) and _CHANGE.search(text):
        return True
    if "(" not in text or _SELECT.match(text) is None:
        return False
    text = _LITERAL.sub("''", text)
    if _FROM.search(text) is None:
        calls = _CALL.findall(text)
    else:
        calls = _CALL_IN_FROM.findall(text) + _FIRST_CALL.findall(text)
    return any(name not in _HARMLESS_NAMES and _HARMLESS_PREFIX.match(name) is None for name in calls)


# The ORM repeats its texts, because values aren't in them.
_changes_cached = lru_cache(1000)(_changes)
