"""An app for real servers: `/hold` ends when the file named in HOLD_UNTIL appears, other paths at once."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from typing import Any

import anyio

from admission.asgi import QoSAdmission


async def held(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    """Reads its body, holds, and answers with the body's length."""
    if scope["type"] == "lifespan":
        for kind in ("startup", "shutdown"):
            assert (await receive())["type"] == f"lifespan.{kind}"
            await send({"type": f"lifespan.{kind}.complete"})
        return
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    until = anyio.Path(os.environ["HOLD_UNTIL"])
    while scope["path"] == "/hold" and not await until.exists():  # noqa: ASYNC110  # It comes from another process.
        await anyio.sleep(0.02)
    answer = str(size).encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


app = QoSAdmission(held, max_concurrency=1, max_queue_size=200, max_wait=120.0)
