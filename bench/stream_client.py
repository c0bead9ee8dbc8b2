"""A client that costs next to nothing: sends chats at once, reads their streams to the end and says what it took.

A process of its own, so that neither a server nor the engine it is compared with shares an interpreter with it. It
stands for one on another machine, which takes no core from the server: the kernel wakes it for many events at once,
while each of them is still sent and received by itself.
"""

import asyncio
import json
import re
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

# Some hundred events; the end of a stream wakes it too.
WAKING_BYTES = 1 << 16
COMPLETION_TOKENS = re.compile(rb'"completion_tokens":\s*(\d+)')


def main() -> None:
    """Ports and bodies come as one JSON line, seconds and tokens of each stream go out as one."""
    told = json.loads(sys.stdin.readline())
    print(json.dumps(asyncio.run(stream_all(told["port"], told["bodies"]))))


async def stream_all(port: int, bodies: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Seconds from sending the first until the last has ended."""
    started = time.perf_counter()
    replies = await asyncio.gather(*(stream(port, body) for body in bodies))
    return {"seconds": time.perf_counter() - started, "num_tokens": [tokens_in(reply) for reply in replies]}


async def stream(port: int, body: dict[str, Any]) -> bytes:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, WAKING_BYTES)
    reader, writer = await asyncio.open_connection(sock=connection)
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(content)}\r\n"
    writer.write(head.encode() + b"Content-Type: application/json\r\nConnection: close\r\n\r\n" + content)
    reply = await reader.read()
    writer.close()
    return reply


def tokens_in(reply: bytes) -> int:
    """What the usage at the stream's end says. Raises ``ValueError`` with the reply's beginning if it has none."""
    found = COMPLETION_TOKENS.findall(reply)
    if not found or b"[DONE]" not in reply:
        raise ValueError(f"no whole stream: {reply[:600].decode(errors='replace')}")
    return int(found[-1])


if __name__ == "__main__":
    main()
