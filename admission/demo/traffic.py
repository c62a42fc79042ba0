"""The demo's clients: who sends what and when, and what they saw."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import httpx2

MAX_TOKENS = 32
"""Tokens asked for per request: about half a second of work on one core."""

SHARES = {"enterprise": 0.10, "pro": 0.20, "free": 0.40, "batch": 0.30}
"""Who sends how much of the traffic."""

WAVES = ((0.2, 0.7), (0.5, 2.0), (0.3, 0.7))
"""The traffic's shape: (share of its time, load as a multiple of what the model can serve)."""

TOKEN_WINDOW = 10.0
"""Seconds over which the live table averages tokens per second."""

PATIENCE = 90.0
"""Seconds after which the traffic gives one request up, far above any wait the server allows."""


class DemoError(Exception):
    """The demo cannot run here; the message says what to do about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One request of the traffic, decided before it starts."""

    at: float
    """Seconds after the start."""
    tier: str
    key: str
    prompt: str
    stream: bool


@dataclass(slots=True, kw_only=True)
class Tally:
    """What the traffic saw of one tier."""

    sent: int = 0
    served: int = 0
    refused: int = 0
    failed: int = 0
    tokens: int = 0
    waits: list[float] = field(default_factory=list)
    """Seconds in line, as the response headers report them."""
    recent: deque[tuple[float, int]] = field(default_factory=deque)
    """(when, tokens) of answers within the last `TOKEN_WINDOW` seconds."""

    def answered(self, now: float, *, waited: float, tokens: int) -> None:
        self.served += 1
        self.tokens += tokens
        self.waits.append(waited)
        self.recent.append((now, tokens))

    def rate(self, now: float) -> float:
        """Tokens per second over the last `TOKEN_WINDOW` seconds."""
        while self.recent and self.recent[0][0] < now - TOKEN_WINDOW:
            self.recent.popleft()
        return sum(tokens for _, tokens in self.recent) / TOKEN_WINDOW


def plan(
    *, capacity: float, seconds: float, prompts: Sequence[str], keys: dict[str, list[str]], rng: random.Random
) -> list[Arrival]:
    """The whole traffic in order of time: a calm, a rush of twice what the model can serve, a calm.

    Args:
        capacity: Requests per second the model can serve.
        seconds: How long to send.
        keys: API keys by tier.
    """
    arrivals = []
    start = 0.0
    for share, load in WAVES:
        end = start + share * seconds
        for tier, part in SHARES.items():
            at = start + rng.expovariate(capacity * load * part)
            while at < end:
                arrivals.append(
                    Arrival(
                        at=at,
                        tier=tier,
                        key=rng.choice(keys[tier]),
                        prompt=rng.choice(prompts),
                        stream=rng.random() < 0.5,
                    )
                )
                at += rng.expovariate(capacity * load * part)
        start = end
    return sorted(arrivals, key=lambda arrival: arrival.at)


class Traffic:
    """The demo's clients. `tallies` says what they saw so far."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client
        self.tallies = {tier: Tally() for tier in SHARES}
        self.started = time.monotonic()

    async def send_all(self, arrivals: Iterable[Arrival], stopping: asyncio.Event) -> None:
        """Send *arrivals* at their times, or until *stopping* is set; return when every answer is in."""
        self.started = time.monotonic()
        async with asyncio.TaskGroup() as requests:
            for arrival in arrivals:
                delay = self.started + arrival.at - time.monotonic()
                if delay > 0 and await _set_within(stopping, delay):
                    return
                requests.create_task(self.send(arrival))

    async def send(self, arrival: Arrival) -> None:
        """One request: served, refused (429 or 503), or failed for a reason nobody planned."""
        tally = self.tallies[arrival.tier]
        tally.sent += 1
        body = {
            "messages": [{"role": "user", "content": arrival.prompt}],
            "max_tokens": MAX_TOKENS,
            "stream": arrival.stream,
            "stream_options": {"include_usage": True} if arrival.stream else None,
        }
        headers = {"authorization": f"Bearer {arrival.key}"}
        try:
            async with self._client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as response:
                answer = (await response.aread()).decode()
            if response.status_code in (429, 503):
                tally.refused += 1
                return
            response.raise_for_status()
            tally.answered(
                time.monotonic(),
                waited=float(response.headers["x-queue-wait-ms"]) / 1000,
                tokens=completion_tokens(answer, streamed=arrival.stream),
            )
        except (httpx2.HTTPError, ValueError, KeyError) as error:
            tally.failed += 1
            print(f"{arrival.tier}: {type(error).__name__}: {error}", file=sys.stderr)

    async def measure(self, *, key: str, prompt: str, slots: int) -> float:
        """Requests per second the model serves when all its slots are busy, from a few real ones."""
        tier = next(iter(SHARES))
        arrival = Arrival(at=0, tier=tier, key=key, prompt=prompt, stream=False)
        await self.send(arrival)  # The first one also pays for caches and threads that are not there yet.
        begun = time.monotonic()
        rounds = 2
        for _ in range(rounds):
            await asyncio.gather(*(self.send(arrival) for _ in range(slots)))
        took = time.monotonic() - begun
        tally = self.tallies[tier]
        if tally.served < 1 + rounds * slots:
            raise DemoError(f"the server answered {tally.served} of {tally.sent} requests sent to warm it up")
        self.tallies[tier] = Tally()
        return rounds * slots / took


def completion_tokens(answer: str, *, streamed: bool) -> int:
    """The usage an answer reports. Raises ValueError for a stream that broke off or carries an error."""
    if not streamed:
        return int(json.loads(answer)["usage"]["completion_tokens"])
    events = [line.removeprefix("data: ") for line in answer.splitlines() if line.startswith("data: ")]
    if len(events) < 2 or events[-1] != "[DONE]":
        raise ValueError("the stream broke off")
    last = json.loads(events[-2])
    if "error" in last:
        raise ValueError(f"the stream ended in an error: {last['error']}")
    return int(last["usage"]["completion_tokens"])


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    """Whether *event* is set within *seconds*."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True
