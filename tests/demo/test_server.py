"""The demo's server stops whatever its clients do."""

import asyncio
import socket
from typing import Any

from aiotasks.demo.server import serve


async def flood(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """An application whose answer is larger than any buffer."""
    if scope["type"] == "lifespan":
        for _ in range(2):
            await send({"type": f"{(await receive())['type']}.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x" * 64 * 1024 * 1024, "more_body": True})
    while (await receive())["type"] != "http.disconnect":
        pass


async def test_a_client_that_reads_nothing_does_not_keep_the_server() -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setblocking(False)
        async with asyncio.timeout(30):
            async with serve(f"{__name__}:flood", 0) as url:
                await loop.sock_connect(client, ("127.0.0.1", int(url.rsplit(":", 1)[1])))
                await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert await loop.sock_recv(client, 15) == b"HTTP/1.1 200 OK"
