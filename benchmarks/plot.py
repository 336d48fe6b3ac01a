"""The plot for the README, from the results that there are."""

__all__ = ["write"]


def write() -> None:
    pass
