"""Clients that follow tasks, and note how old each update is when it arrives."""

import asyncio
import re
import time
from collections.abc import Sequence

__all__ = ["Clients"]

# The time at which the task has called progress(), which is its message.
SENT_AT = re.compile(rb'"message":"([\d.]+)"')

# Clients that connect at a time.
AT_ONCE = 50


class Clients:
    """One client for each token; ``ages`` are seconds. They come back as browsers do, until they are
    closed."""

    def __init__(self, port: int, tokens: Sequence[str]) -> None:
        self._port = port
        self._tokens = tokens
        self._connecting = asyncio.Semaphore(AT_ONCE)
        self._followers: list[asyncio.Task[None]] = []
        self.ages: list[float] = []
        self.seen = [asyncio.Event() for _ in tokens]
        self.ended_in_order = 0

    async def open(self, *, once: bool = False) -> None:
        """Connect; returns when each has had an event. once: they don't come back."""
        self._followers = [
            asyncio.create_task(self._follow(token, seen, once))
            for token, seen in zip(self._tokens, self.seen, strict=True)
        ]
        await asyncio.gather(*(seen.wait() for seen in self.seen))

    async def wait_closed(self) -> None:
        """Wait until all have ended; only for those that don't come back."""
        await asyncio.gather(*self._followers)

    async def close(self) -> None:
        for follower in self._followers:
            follower.cancel()
        await asyncio.gather(*self._followers, return_exceptions=True)

    async def _follow(self, token: str, seen: asyncio.Event, once: bool) -> None:
        last_id = ""
        while True:
            async with self._connecting:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                writer.write(
                    f"GET /tasks/events/?token={token} HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n"
                    f"Last-Event-ID: {last_id}\r\n\r\n".encode()
                )
                await reader.readuntil(b"retry: ")
            try:
                while chunk := await reader.read(65536):
                    now = time.time()
                    self.ages += [now - float(sent) for sent in SENT_AT.findall(chunk)]
                    if ids := re.findall(rb"^id: (\S+)", chunk, re.MULTILINE):
                        last_id = ids[-1].decode()
                        seen.set()
                    if chunk.endswith(b"0\r\n\r\n"):
                        self.ended_in_order += 1
                        break
                    if b"event: end" in chunk:
                        return
            finally:
                writer.close()
            if once:
                return
