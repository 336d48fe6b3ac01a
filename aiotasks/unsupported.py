"""What to pass in place of a value that JSON can't hold: one sentence for people, by the value's type."""

from collections.abc import Awaitable, Iterable
from dataclasses import is_dataclass
from datetime import timedelta
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from pathlib import PurePath
from uuid import UUID

from django.utils.datastructures import MultiValueDict
from django.utils.functional import LazyObject, Promise

__all__ = ["AMBIGUOUS", "unsupported"]

# Types that would pass for text, lists or dicts, and be changed silently: a MultiValueDict (QueryDict) gives
# only the last value of each key, and a lazy object claims the type of the object that it wraps.
AMBIGUOUS = (MultiValueDict, LazyObject, Promise)

_BY_TYPE: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (MultiValueDict, "value.dict() (the last value of each key) or dict(value.lists()) (all of them)"),
    (Promise, "str(value)"),
    (LazyObject, "the object that it wraps: str(value) for text, value.pk for a model instance"),
    ((UUID, Decimal, PurePath, IPv4Address, IPv6Address), "str(value)"),
    (timedelta, "value.total_seconds()"),
    (Enum, "value.value"),
    ((bytes, bytearray, memoryview), "base64.b64encode(value).decode()"),
    (BaseException, "str(value)"),
    (Awaitable, "the value that it returns when it is awaited"),
)
_ANYTHING_ELSE = "text, numbers, lists or dicts with the same content"


def unsupported(kind: type) -> str:
    """Return Django's message for a type that JSON can't hold, with the value to use instead."""
    return f"Unsupported type: {type.__repr__(kind)}. Use {_instead(kind)} instead."


def _instead(kind: type) -> str:
    for kinds, advice in _BY_TYPE:
        if issubclass(kind, kinds):
            return advice
    if hasattr(kind, "isoformat"):  # datetime's date, time and datetime, and those of other libraries
        return "str(value)"
    if hasattr(kind, "_meta") and hasattr(kind, "pk"):  # by its shape: models aren't imported here
        return "obj.pk"
    if hasattr(kind, "values_list"):
        return 'list(value.values_list("pk", flat=True))'
    if is_dataclass(kind):
        return "dataclasses.asdict(value)"
    return "list(value)" if issubclass(kind, Iterable) else _ANYTHING_ELSE
