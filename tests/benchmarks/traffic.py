"""The requests that are sent: an API key out of a hundred, and the header fields real clients send."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

Fields = Sequence[tuple[bytes, bytes]]

KEYS = [f"sk-benchmark-{number:03d}" for number in range(100)]
TIERS = ("enterprise", "pro", "free")

HOST = (b"host", b"127.0.0.1:8000")

CURL: Fields = ((b"user-agent", b"curl/8.14.1"), (b"accept", b"*/*"))
"""Beside host and key."""

OPENAI: Fields = (
    (b"accept-encoding", b"gzip, deflate"),
    (b"connection", b"keep-alive"),
    (b"accept", b"application/json"),
    (b"content-type", b"application/json"),
    (b"user-agent", b"AsyncOpenAI/Python 2.8.1"),
    (b"x-stainless-lang", b"python"),
    (b"x-stainless-package-version", b"2.8.1"),
    (b"x-stainless-os", b"Linux"),
    (b"x-stainless-arch", b"x64"),
    (b"x-stainless-runtime", b"CPython"),
    (b"x-stainless-runtime-version", b"3.12.3"),
    (b"x-stainless-async", b"async:asyncio"),
    (b"x-stainless-retry-count", b"0"),
    (b"x-stainless-read-timeout", b"600"),
)

BODY = b'{"model":"m","messages":[{"role":"user","content":"Name three rivers in Europe."}]}'


def key_digest(key: str) -> str:
    """What a tenant's configuration says of *key*."""
    return hashlib.sha256(key.encode()).hexdigest()


def fresh_scope(number: int, fields: Fields, method: str = "GET") -> dict[str, Any]:
    """The ASGI scope of request *number*, as uvicorn would make it: no bytes object was ever seen before.

    That matters: a header name that was hashed once is looked up faster ever after, which no server's requests are.
    """
    key = f"Bearer {KEYS[number % len(KEYS)]}".encode()
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000 + number % 64),
        "scheme": "http",
        "method": method,
        "root_path": "",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        "headers": [
            (bytes(bytearray(name)), bytes(bytearray(value)))
            for name, value in (HOST, *fields, (b"authorization", key))
        ],
        "state": {},
    }


def raw_request(number: int, fields: Fields, method: str = "GET", body: bytes = b"") -> bytes:
    """The same on the wire."""
    key = f"Bearer {KEYS[number % len(KEYS)]}".encode()
    lines = [f"{method} /v1/chat/completions HTTP/1.1".encode()]
    lines += [name + b": " + value for name, value in (HOST, *fields, (b"authorization", key))]
    if body:
        lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join([*lines, b"", body])
