"""The views of a site: ``events``, and ``sign()``, which makes the tokens that it takes."""

from .web.events import events
from .web.tokens import sign

__all__ = ["events", "sign"]
