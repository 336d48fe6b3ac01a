"""Server-Sent Events, as a browser reads them."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Event", "Parser", "aread", "read"]


@dataclass
class Event:
    kind: str = "message"
    id: str | None = None
    data: str = ""
    retry: int | None = None
    comments: list[str] = field(default_factory=list)

    @property
    def tasks(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.data)["tasks"]
        return found


class Parser:
    """Makes events of chunks."""

    def __init__(self) -> None:
        self._text = ""

    def feed(self, chunk: bytes) -> Iterator[Event]:
        self._text += chunk.decode()
        *blocks, self._text = self._text.split("\n\n")
        for block in blocks:
            event = Event()
            for line in block.split("\n"):
                name, _, value = line.partition(": ")
                match name:
                    case "event":
                        event.kind = value
                    case "id":
                        event.id = value
                    case "data":
                        event.data += value
                    case "retry":
                        event.retry = int(value)
                    case _:
                        assert not name, block
                        event.comments.append(value)
            yield event


def read(chunks: Iterator[bytes]) -> Iterator[Event]:
    parser = Parser()
    for chunk in chunks:
        yield from parser.feed(chunk)


async def aread(chunks: AsyncIterator[bytes]) -> AsyncGenerator[Event]:
    parser = Parser()
    async for chunk in chunks:
        for event in parser.feed(chunk):
            yield event
