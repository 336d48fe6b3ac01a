"""Metadata as values: checked, read, and merged by key. No I/O.

A row has one JSON object. Its keys that begin with an underscore are aiotasks' own, the others the site's.
"""

from collections.abc import Mapping
from typing import Any

from ..codec import decode, dump_json, encode
from ..exceptions import InvalidRow

__all__ = [
    "MAX_SIZE",
    "Metadata",
    "changed",
    "check_size",
    "dump_metadata",
    "dump_row",
    "merge",
    "public",
    "read_row",
    "with_own",
]

# Bytes of JSON text. A running task may have its metadata written ten times a second.
MAX_SIZE = 64 * 1024

# A row's, or a part of it.
type Metadata = dict[str, Any]


def dump_metadata(metadata: Any, limit: int = MAX_SIZE) -> tuple[Metadata, str]:
    """Return a copy of a site's metadata as they will be read back, and their JSON text.

    Raises TypeError or ValueError for what isn't a mapping with strings as keys, for keys that are aiotasks'
    own, for values that JSON can't keep, and for more than ``limit`` bytes.
    """
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata must be a dict, not {metadata!r:.100}.")
    for key in metadata:
        if not isinstance(key, str):
            raise TypeError(f"a key of metadata must be a string, not {key!r:.100}.")
        if key.startswith("_"):
            raise ValueError(
                f"metadata has the key {str(key)!r:.100}; keys with an underscore in front are aiotasks' own."
            )
    if not metadata:
        return {}, "{}"
    plain, text = dump_json(metadata, where="metadata", limit=limit)
    return plain, text


def dump_row(row: Metadata) -> str | None:
    """Return the text of a row's metadata, of which all was read from JSON; None (NULL) if there are none."""
    return encode(row) if row else None


def read_row(text: str | None, id: object) -> Metadata:
    """Return the metadata of task ``id`` from the text of its row. Raises InvalidRow for other JSON."""
    if text is None:
        return {}
    try:
        row = decode(text)
    except (ValueError, RecursionError) as error:  # PostgreSQL accepts longer integers and deeper nesting
        raise InvalidRow(id, f"its metadata isn't JSON that Python reads ({error})") from error
    if type(row) is not dict:
        raise InvalidRow(id, "its metadata isn't a JSON object")
    return row


def merge(text: str | None, values: Metadata, id: object) -> str | None:
    """Return the text of a row's metadata with ``values`` in place of those of the same keys.

    Raises ValueError if that takes more than MAX_SIZE bytes, and more than before; InvalidRow.
    """
    merged = dump_row(read_row(text, id) | values)
    check_size(merged, text, id)
    return merged


def check_size(text: str | None, before: str | None, id: object, limit: int = MAX_SIZE) -> None:
    """Raise ValueError if a row's new text is larger than ``limit``, and than the text before."""
    if text is not None and len(text) > max(limit, len(before or "")):
        raise ValueError(
            f"The metadata of task {id} would take {len(text)} bytes as JSON; the limit is {limit}."
        )


def with_own(text: str | None, own: Mapping[str, Any]) -> str | None:
    """Return the text of a row's metadata with keys of aiotasks' own, or ``text`` where they don't fit."""
    values: Metadata = {} if text is None else decode(text)
    merged = encode({**values, **own})
    return merged if len(merged) <= MAX_SIZE else text


def public(row: Metadata) -> Metadata:
    """Return a row's metadata without the keys that are aiotasks' own."""
    return {key: value for key, value in row.items() if not key.startswith("_")}


def changed(row: Metadata, before: Mapping[str, Any], after: Mapping[str, Any]) -> Metadata:
    """Return ``row`` with the keys that differ between two states: set, or removed. If it has them already,
    that is ``row`` itself, else a copy.
    """
    new = {
        key: value
        for key, value in after.items()
        if not (key in before and _same(before[key], value)) and not (key in row and _same(row[key], value))
    }
    gone = [key for key in before if key not in after and key in row]
    if not new and not gone:
        return row
    merged = row | new
    for key in gone:
        del merged[key]
    return merged


def _same(one: Any, other: Any) -> bool:
    """Whether two values are the same in JSON, where True isn't 1, and 1 isn't 1.0."""
    return one is other or repr(one) == repr(other)
