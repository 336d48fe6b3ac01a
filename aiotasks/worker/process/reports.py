"""Channel: messages between a supervisor and a worker's process, each a line's length and JSON.

It is a second socket pair beside the pipe: over that a process of an older release takes any byte for the
end of the grace, and after a deploy in place the two may be of different releases. The worker finds its end
by an environment variable, which an older release doesn't read; then nobody answers.

- The supervisor sends ``{"ask": WHAT, "id": N}``, and the worker ``{"id": N, "answer": VALUE}``.
- Either sends ``{"say": WORD}`` on its own.

Both ignore words that they don't know.
"""

import asyncio
import json
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from ...forks import keep_from_children

__all__ = ["VARIABLE", "Channel", "channel_from_environment"]

logger = logging.getLogger("aiotasks.health")

# The environment variable with the file descriptor of a worker's end.
VARIABLE = "AIOTASKS_REPORTS"

# Seconds for an answer. A health thread answers within milliseconds, unless code holds the GIL.
ANSWER_TIMEOUT = 1.0

_LENGTH = struct.Struct("!I")

# Bytes of one message. More are no message, but what a task has written to a wrong file descriptor: its
# length would be waited for. Chosen: the metrics of 200 tasks have 1 MiB.
MAX_LENGTH = 64 * 2**20

type Handler = Callable[[], Awaitable[Any]]


class Channel:
    """One end. All methods are called on the loop of ``run()``, but for ``say``, which any thread may call.

    answers: a function for each thing that the other end may ask for.
    heard: called with each word that the other end says.
    """

    def __init__(
        self,
        end: socket.socket,
        *,
        answers: Mapping[str, Handler] | None = None,
        heard: Callable[[str], None] = lambda word: None,
    ) -> None:
        end.setblocking(False)
        keep_from_children(end)
        self._end = end
        self._answers = answers or {}
        self._heard = heard
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._said: deque[str] = deque()  # words that aren't sent yet

    async def run(self) -> None:
        """Receive messages until the other end is closed, or has sent something else, which is logged."""
        try:
            reader, self._writer = await asyncio.open_connection(sock=self._end)
            self._loop = asyncio.get_running_loop()
            self._send_words()
            while True:
                (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
                if length > MAX_LENGTH:
                    raise ValueError(f"a message of {length} bytes")
                await self._received(json.loads(await reader.readexactly(length)))
        except (OSError, asyncio.IncompleteReadError):
            pass  # the other end is closed
        except Exception:  # tasks can write to the socket: neither process may end by that
            logger.exception("The channel between a worker and its supervisor has failed")
        finally:
            if self._writer is not None:
                self._writer.close()
            for asked in self._asked.values():
                asked.cancel()

    def close(self) -> None:
        """Close this end; after ``run()``, which may have been cancelled before it began."""
        self._end.close()

    async def ask(self, what: str) -> Any:
        """Return the other end's answer; None if there is none in time."""
        if self._writer is None or self._writer.is_closing():
            return None
        self._number = number = self._number + 1
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self._send({"ask": what, "id": number})
            done, _ = await asyncio.wait([answer], timeout=ANSWER_TIMEOUT)
            return None if not done or answer.cancelled() else answer.result()
        finally:
            del self._asked[number]

    def say(self, word: str) -> None:
        """Send a word. May be called in any thread."""
        self._said.append(word)
        if self._loop is not None:
            with suppress(RuntimeError):  # it has been closed
                self._loop.call_soon_threadsafe(self._send_words)

    async def _received(self, message: dict[str, Any]) -> None:
        if "say" in message:
            self._heard(message["say"])
        elif "ask" in message:
            handler = self._answers.get(message["ask"])
            if handler is not None:
                self._send({"id": message["id"], "answer": await _answer(handler)})
        else:
            asked = self._asked.get(message.get("id", 0))
            if asked is not None and not asked.done():
                asked.set_result(message.get("answer"))

    def _send_words(self) -> None:
        while self._said:
            self._send({"say": self._said.popleft()})

    def _send(self, message: dict[str, Any]) -> None:
        if self._writer is not None and not self._writer.is_closing():
            body = json.dumps(message).encode()
            self._writer.write(_LENGTH.pack(len(body)) + body)


async def _answer(handler: Handler) -> Any:
    try:
        return await handler()
    except Exception:  # the next question must be answered all the same
        logger.exception("A worker cannot answer its supervisor")
        return None


def channel_from_environment(*, supervised: bool) -> socket.socket | None:
    """Return this worker's end, and remove the variable, which processes that tasks start must not have.

    None if there is no supervisor, or one of a release that has no such channel. A process that isn't
    ``supervised`` may have the variable all the same: from a worker of an older release, which leaves it to
    what its tasks start, and then the number is that of any file.
    """
    number = os.environ.pop(VARIABLE, None)
    if number is None or not supervised:
        return None
    try:
        end = socket.socket(fileno=int(number))
    except (OSError, ValueError, OverflowError):
        return None
    end.set_inheritable(False)
    return end
