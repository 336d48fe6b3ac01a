"""How values and errors are written as JSON, and read back exactly.

The columns are of PostgreSQL's type ``json``, which keeps the text as it is (``jsonb`` loses
the order of keys and -0.0, and refuses ``\\u0000``). A value that the text can't keep is refused here,
before anything is stored, and the error names its place.
"""

import json
import math
from collections.abc import Mapping, Sequence
from traceback import format_exception
from typing import Any

from .redact import redacted
from .unsupported import AMBIGUOUS, unsupported

__all__ = ["CANCELLED", "CANCELLED_START", "decode", "dump_error", "dump_json", "encode", "normalize"]

# Django's own normalize_json() recurses two frames a level inside the caller's stack, under
# Python's default limit of 1,000; 200 levels leave half of that to the caller.
MAX_DEPTH = 200

_BIG = 2**63

# The class of a cancelled task's error, and how its text begins, as dump_error() writes them.
CANCELLED = "aiotasks.exceptions.TaskCancelled"
CANCELLED_START = json.dumps({"class": CANCELLED})[:-1]

_EMPTY: dict[type, str] = {list: "[]", dict: "{}"}

# Writes what was read from JSON, or normalised. json.dumps() makes an encoder at every call that isn't all
# defaults.
encode = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


def dump_json(value: Any, *, where: str, limit: int) -> tuple[Any, str]:
    """Normalise ``value`` and write it as JSON text of at most ``limit`` bytes.

    Returns the value as it will be read back, and the text. Raises TypeError or ValueError
    that names the place (``kwargs['a'][3]``) of a value that JSON can't keep exactly.
    """
    if value is None:  # most tasks return it
        return None, "null"
    if not value and type(value) in _EMPTY:  # many tasks are called with it
        return value, _EMPTY[type(value)]
    plain = normalize(value, where)
    text = encode(plain)
    if len(text) > limit:  # ASCII only, so characters are bytes
        raise ValueError(f"{where} takes {len(text)} bytes as JSON; the limit is {limit}.")
    if "\\ud" in text:  # two lone surrogates side by side are read back as the character of the pair
        plain = json.loads(text)
        if len(encode(plain)) != len(text):
            raise ValueError(f"{where} has two keys that are the same in JSON.")
    return plain, text


def normalize(value: Any, where: str, depth: int = 0) -> Any:
    """Return ``value`` as ``json.loads(json.dumps(value))`` would, by Django's rules.

    Tuples and other sequences become lists, mappings dicts, UTF-8 bytes str, keys str. Raises
    TypeError or ValueError that names the place of any other value, also of one that those rules would
    change silently (a QueryDict, a lazy object).
    """
    kind = type(value)
    if kind is str or value is None or kind is bool:
        return value
    if kind is int or kind is float:
        return _checked_number(value, where)
    if depth >= MAX_DEPTH:
        raise ValueError(f"{_short(where)} is nested deeper than {MAX_DEPTH} levels (or refers to itself).")
    if issubclass(kind, AMBIGUOUS) or value.__class__ is not kind:  # the latter: other libraries' proxies
        raise TypeError(f"{where}: {unsupported(kind)}")
    match value:
        case Mapping():
            return _normalize_mapping(value, where, depth)
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError:
                raise TypeError(f"{where}: bytes that aren't UTF-8. {unsupported(kind)}") from None
        case str():
            return str.__str__(value)
        case int():
            return _checked_number(int.__int__(value), where)
        case float():
            return _checked_number(float.__float__(value), where)
        case Sequence() if not isinstance(value, bytearray | memoryview):
            return [
                item if _is_plain(item) else normalize(item, f"{where}[{i}]", depth + 1)
                for i, item in enumerate(value)
            ]
        case _:
            raise TypeError(f"{where}: {unsupported(kind)}")


def _normalize_mapping(value: Mapping[Any, Any], where: str, depth: int) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, item in value.items():
        name = key if type(key) is str else _key(key, where)
        if name in plain:
            raise ValueError(f"{where} has two keys that are both {name!r} in JSON.")
        plain[name] = item if _is_plain(item) else normalize(item, f"{where}[{key!r}]", depth + 1)
    return plain


def _is_plain(value: Any) -> bool:
    """Return whether the value needs no check, nor the name of its place. True for nearly all values."""
    kind = type(value)
    return kind is str or kind is bool or value is None or (kind is int and -_BIG < value < _BIG)


def _key(key: Any, where: str) -> str:
    """A key as ``json.dumps`` writes it; bytes as Django reads them."""
    kind = type(key)
    if issubclass(kind, bytes | str):
        return str(normalize(key, f"a key of {where}", MAX_DEPTH - 1))
    if key is None or kind is bool:
        return {None: "null", True: "true", False: "false"}[key]
    if issubclass(kind, int | float):
        return json.dumps(_checked_number(key, f"a key of {where}"))
    raise TypeError(f"a key of {where}: Unsupported type: {type.__repr__(kind)}. Use str(key) instead.")


def _checked_number(value: float, where: str) -> float:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value!r}, which JSON can't hold.")
    elif value.bit_length() > 14_000:  # near Python's limit of 4,300 digits, either way
        try:
            str(value)
        except ValueError:
            raise ValueError(f"{where} is an integer of more than 4,300 digits.") from None
    return value


def _short(where: str) -> str:
    return where if len(where) <= 60 else f"{where[:60]}…"


def decode(text: str | None) -> Any:
    """Read JSON text from the database (None for NULL)."""
    if text == "[]":  # most tasks have no positional, or no keyword arguments: 1 µs saved each
        return []
    if text == "{}":
        return {}
    return None if text is None or text == "null" else json.loads(text)


def dump_error(exception: BaseException, *, limit: int, redact: str | None) -> str:
    """Write an exception as the JSON of a Django ``TaskError``, traceback included.

    Never raises, whatever the exception's ``__str__`` does. The function at the path ``redact``
    rewrites the text. One over ``limit`` bytes keeps its beginning and its end: the first
    frames, and the message.
    """
    try:
        text = "".join(format_exception(exception))
    except BaseException as error:  # __str__, __cause__ and __notes__ are user code, which may raise anything  # noqa: BLE001
        text = f"(the traceback couldn't be formatted: {_class_path(type(error))})\n"
    text = redacted(text, by=redact)  # before it is cut, because half a secret may not be recognised
    path = _fit(_class_path(type(exception))[:1000], limit // 4)
    room = limit - len(json.dumps({"class": path, "traceback": ""}))
    # Surrogates and controls cost six bytes each as JSON; nothing costs more.
    if len(text) * 6 > room:
        text = _truncate(text, room - 80)
    return json.dumps({"class": path, "traceback": text})


def _class_path(kind: type) -> str:
    try:
        return f"{kind.__module__}.{kind.__qualname__}"
    except BaseException:  # a metaclass is user code, too  # noqa: BLE001
        return type.__repr__(kind)


def _truncate(text: str, limit: int) -> str:
    half = limit // 2
    head, tail = _fit(text[:half], half), _fit(text[::-1][:half], half)[::-1]
    if len(head) + len(tail) >= len(text):
        return text
    return f"{head}\n… ({len(text) - len(head) - len(tail)} characters left out) …\n{tail}"


def _fit(text: str, limit: int) -> str:
    """The longest beginning of ``text`` (nearly) that takes at most ``limit`` bytes as JSON."""
    while len(json.dumps(text)) > limit:
        text = text[: int(len(text) * 0.75)]
    return text
