"""Texts that callers give and a column must hold."""

__all__ = ["is_storable"]


def is_storable(text: str) -> bool:
    """Return whether PostgreSQL can hold the text: it has no NUL and no surrogates."""
    if "\0" in text:
        return False
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)
