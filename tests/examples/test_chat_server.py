"""The example chat server with its real model, asked by the real `openai` client over the loopback interface."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx2
import openai
import pytest
import uvicorn

from admission.events import Event, Released
from admission.types import Outcome

pytestmark = [pytest.mark.model, pytest.mark.servers]

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = "SmolLM2-135M-Instruct"
QUESTION = [{"role": "user", "content": "Name three rivers in Europe."}]
STORY = [{"role": "user", "content": "Tell me a very long story about a train."}]


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    """The module `examples/chat_server.py`, imported as `uvicorn --app-dir examples` does."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        import chat_server

        yield chat_server
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def model(example: ModuleType) -> Any:
    """The model, loaded once: its servers come and go."""
    return example.SmolLM2(parallel=2)


class Charged:
    """An observer that keeps what permits came back with."""

    def __init__(self) -> None:
        self.released: list[Released] = []

    def observe(self, event: Event) -> None:
        if isinstance(event, Released):
            self.released.append(event)


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve *app* with uvicorn in a thread; give its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=20))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        assert server.started
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        listener.close()
    assert not thread.is_alive()


@pytest.fixture
def url(example: ModuleType, model: Any) -> Iterator[str]:
    """A server with two slots and a line of sixteen."""
    with serving(example.create_app(model)) as address:
        yield address


@pytest.fixture
def narrow_url(example: ModuleType, model: Any) -> Iterator[str]:
    """A server with one slot and room for one in line."""
    with serving(example.create_app(model, slots=1, max_queue_size=1)) as address:
        yield address


@contextmanager
def client_of(url: str, key: str = "sk-demo-ann", **options: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, **options) as client:
        yield client


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for what another thread or process brings about."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "it did not come to pass"
        time.sleep(0.01)


def pool_at(url: str) -> dict[str, Any]:
    """The server's pool, as its status page shows it."""
    shown: dict[str, Any] = httpx2.get(f"{url}/-/admission/status").raise_for_status().json()["pool"]
    return shown


@contextmanager
def full_line(url: str) -> Iterator[threading.Event]:
    """One client is served and another one waits in a line of one, until the event is set or the block is left."""
    enough = threading.Event()

    def ask() -> None:
        with client_of(url, max_retries=0) as client:
            story = client.chat.completions.create(model=MODEL, messages=STORY, max_tokens=900, stream=True)
            with story:
                for _ in story:
                    if enough.is_set():
                        return

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for number, thread in enumerate(threads):
        thread.start()
        until(lambda queued=number: _fill(url) == (1, queued))
    try:
        yield enough
    finally:
        enough.set()
        for thread in threads:
            thread.join(timeout=60)


def _fill(url: str) -> tuple[int, int]:
    pool = pool_at(url)
    return pool["in_flight"], pool["queued"]


def test_an_openai_client_gets_an_answer_and_its_usage(url: str) -> None:
    """The whole shape: one choice, a finish reason, and tokens that add up."""
    with client_of(url) as client:
        answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=12)
    assert answer.model == MODEL
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_says_the_same_as_the_answer_in_one_piece(url: str) -> None:
    """At temperature 0 both ways give one text and one usage, and the stream comes in pieces."""
    asked = {"model": MODEL, "messages": QUESTION, "max_tokens": 12, "temperature": 0}
    with client_of(url) as client:
        whole = client.chat.completions.create(**asked)
        pieces = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    text = [piece.choices[0].delta.content or "" for piece in pieces if piece.choices]
    assert len(text) > 3
    assert "".join(text) == whole.choices[0].message.content
    assert pieces[-1].usage is not None
    assert whole.usage is not None
    assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_a_stream_carries_usage_only_when_asked(url: str) -> None:
    """OpenAI's own server sends the chunk without choices only to those who want it."""
    with client_of(url) as client:
        pieces = list(client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=4, stream=True))
    assert all(piece.choices for piece in pieces)


def test_the_models_are_listed(url: str) -> None:
    """`client.models.list()` names the one model there is."""
    with client_of(url) as client:
        assert [model.id for model in client.models.list()] == [MODEL]


def test_the_api_key_decides_the_class(url: str) -> None:
    """A pro key is served as pro; a key nobody knows as batch."""
    classes = []
    for key in ("sk-demo-bolt", "sk-nobody"):
        with client_of(url, key) as client:
            raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=QUESTION, max_tokens=1)
        classes.append(raw.headers["x-queue-class"])
    assert classes == ["pro", "batch"]


def test_a_request_costs_its_tenant_the_tokens_it_used(
    example: ModuleType, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Charged as usual at first, settled at the end: all tokens of an answer, the few of one that was left."""
    charged = Charged()
    watched = partial(example.AdmissionController, observers=[charged])
    monkeypatch.setattr(example, "AdmissionController", watched)
    with serving(example.create_app(model)) as url, client_of(url) as client:
        answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=5)
        with client.chat.completions.create(model=MODEL, messages=STORY, max_tokens=900, stream=True) as stream:
            next(iter(stream))
        until(lambda: len(charged.released) == 2)
    assert answer.usage is not None
    finished, left = charged.released
    assert (finished.outcome, finished.actual_cost) == (Outcome.SUCCESS, answer.usage.total_tokens)
    assert left.outcome is Outcome.IGNORED
    assert 0 < left.actual_cost < 900


@pytest.mark.parametrize(
    "body",
    [b"no json", b"[]", b"{}", b'{"messages": "hello"}', b'{"messages": [{"role": "user", "content": 7}]}'],
)
def test_a_body_that_makes_no_sense_is_a_400(url: str, body: bytes) -> None:
    """The client is told what is wrong in the error shape it understands, and the server lives on."""
    answer = httpx2.post(f"{url}/v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert httpx2.get(f"{url}/health").status_code == 200


def test_a_prompt_longer_than_the_context_is_a_400_also_as_a_stream(url: str) -> None:
    """The model's refusal arrives as a status, before a stream has begun."""
    with client_of(url) as client:
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError, match="context size"):
                client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": "word " * 3000}], stream=stream
                )


def test_a_full_line_is_a_rate_limit_error_with_a_code(narrow_url: str) -> None:
    """With the slot and the line taken, the next one is refused, with a reason and a time to come back."""
    with (
        full_line(narrow_url),
        client_of(narrow_url, max_retries=0) as client,
        pytest.raises(openai.RateLimitError) as refused,
    ):
        client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=1)
    assert refused.value.code == "queue_full"
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 30
    assert refused.value.response.headers["x-admission-reason"] == "rejected-queue-full"


def test_a_refused_client_comes_back_and_is_served(narrow_url: str) -> None:
    """The openai client on its defaults waits as long as Retry-After says, and then succeeds."""
    statuses: list[int] = []
    with full_line(narrow_url) as enough:

        def note(response: httpx2.Response) -> None:
            statuses.append(response.status_code)
            enough.set()

        with (
            openai.DefaultHttpxClient(event_hooks={"response": [note]}) as http,
            client_of(narrow_url, http_client=http) as client,
        ):
            answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=1)
    assert answer.choices
    assert statuses == [429, 200]


def test_a_client_that_leaves_its_stream_stops_the_model(url: str, model: Any) -> None:
    """The rest is never generated, and the slot is free for the next one."""
    stopped = model.stopped
    with client_of(url) as client:
        stream = client.chat.completions.create(model=MODEL, messages=STORY, max_tokens=900, stream=True)
        for _ in range(3):
            next(iter(stream))
        assert model.generating == 1
        stream.close()
        until(lambda: model.stopped == stopped + 1)
        until(lambda: _fill(url) == (0, 0))
    assert model.generating == 0


def test_a_client_that_gives_up_on_one_answer_stops_the_model(url: str, model: Any) -> None:
    """Also when no stream was asked for: what nobody will read is not generated."""
    stopped = model.stopped
    with client_of(url, max_retries=0, timeout=1.0) as client, pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(model=MODEL, messages=STORY, max_tokens=900, temperature=0)
    until(lambda: model.stopped == stopped + 1)
    until(lambda: _fill(url) == (0, 0))


def test_health_and_metrics_answer_while_every_slot_is_taken(narrow_url: str) -> None:
    """They are exempt: a busy model is no reason to be restarted or to go blind."""
    with full_line(narrow_url):
        assert httpx2.get(f"{narrow_url}/health").json() == {"status": "ok"}
        text = httpx2.get(f"{narrow_url}/metrics").text
    assert 'admission_queue_size{pool="chat",priority="all"} 1.0' in text
