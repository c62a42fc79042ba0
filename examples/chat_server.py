"""A chat server with a real model behind `admission`. Copy it, swap the model, keep the queue.

    uvicorn --app-dir examples chat_server:app
    curl localhost:8000/v1/chat/completions -H 'Authorization: Bearer sk-demo-acme' \\
         -d '{"messages": [{"role": "user", "content": "Name three rivers."}], "max_tokens": 32}'

The middleware decides who may start (API key → tenant → tier, here each tier is a class), the executor runs the
model in threads of its own, and a request costs its tenant the tokens it really used.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from json import JSONDecodeError

import anyio
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from smollm import BadRequest, ChatJob, Chunk, SmolLM2, Usage, gather
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from admission import AdmissionController, Outcome, PriorityClass, QoSAdmission, QueuedExecutor, current_permit
from admission.asgi import Classification, Tenant
from admission.observability.prometheus import PoolCollector

CLASSES = [
    PriorityClass(name="enterprise"),
    PriorityClass(name="pro"),
    PriorityClass(name="free", guaranteed=0.2),
    PriorityClass(name="batch", guaranteed=0.05, max_delay=20),
]
KEYS = {  # key: (tenant, tier). A real server has SHA-256 hashes of its keys, in its configuration.
    "sk-demo-acme": ("acme", "enterprise"),
    "sk-demo-bolt": ("bolt", "pro"),
    "sk-demo-crux": ("crux", "pro"),
    "sk-demo-ann": ("ann", "free"),
    "sk-demo-bob": ("bob", "free"),
    "sk-demo-night": ("night", "batch"),
}
USUAL_TOKENS = 64
"""What a request costs its tenant until its real usage is known."""


async def generate(executor: QueuedExecutor[ChatJob, Usage], body: dict[str, object]) -> AsyncGenerator[Chunk]:
    """The chunks of one answer as the model makes them. Closing it stops the model at its next token."""
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[Chunk | None] = asyncio.Queue()

    def emit(chunk: Chunk) -> None:  # Called in the model's thread.
        loop.call_soon_threadsafe(chunks.put_nowait, chunk)

    job = ChatJob(body=body, emit=emit)
    permit = current_permit()
    running = asyncio.create_task(executor.execute(job))
    running.add_done_callback(lambda _: chunks.put_nowait(None))
    try:
        while (chunk := await chunks.get()) is not None:
            yield chunk
        await running  # Raises what the model raised.
    finally:
        outcome = Outcome.SUCCESS if running.done() else Outcome.IGNORED  # A client that left teaches no limit.
        job.stop.set()
        with anyio.CancelScope(shield=True):  # The slot is in use until the model's thread is done.
            await asyncio.wait({running})
        if permit and not running.cancelled() and not running.exception():
            permit.release(outcome=outcome, actual_cost=running.result().total)


async def events(first: Chunk, rest: AsyncGenerator[Chunk], *, with_usage: bool) -> AsyncIterator[str]:
    """The answer as server-sent events."""
    async with aclosing(rest):
        yield f"data: {json.dumps(first)}\n\n"
        async for chunk in rest:
            if chunk["choices"] or with_usage:
                yield f"data: {json.dumps(chunk)}\n\n"
        yield "data: [DONE]\n\n"


async def chat(request: Request) -> Response:
    """POST /v1/chat/completions"""
    body = await request.json()
    if not isinstance(body, dict):
        raise BadRequest("the body must be a JSON object")
    answer = generate(request.app.state.executor, body)
    if not body.get("stream"):
        async with aclosing(answer):
            return JSONResponse(gather([chunk async for chunk in answer]))
    first = await anext(answer)  # A body the model refuses is refused here, while a status can still say so.
    options = body.get("stream_options")
    with_usage = isinstance(options, dict) and bool(options.get("include_usage"))
    return StreamingResponse(events(first, answer, with_usage=with_usage), media_type="text/event-stream")


async def bad_request(request: Request, error: Exception) -> Response:
    """The answer to a body that is no JSON, or nothing the model understands."""
    details = {"message": str(error), "type": "invalid_request_error", "param": None, "code": None}
    return JSONResponse({"error": details}, status_code=400)


async def models(request: Request) -> Response:
    """GET /v1/models"""
    card = {"id": SmolLM2.name, "object": "model", "created": 0, "owned_by": "HuggingFaceTB"}
    return JSONResponse({"object": "list", "data": [card]})


async def health(request: Request) -> Response:
    """GET /health"""
    return JSONResponse({"status": "ok"})


async def metrics(request: Request) -> Response:
    """GET /metrics"""
    return Response(generate_latest(request.app.state.registry), media_type=CONTENT_TYPE_LATEST)


def create_app(model: SmolLM2 | None = None, *, slots: int = 2, max_queue_size: int = 16) -> Starlette:
    """The app. *model* is loaded at startup unless it is given; it runs *slots* generations side by side."""
    controller = AdmissionController(
        name="chat", max_concurrency=slots, max_queue_size=max_queue_size, max_wait=30, classes=CLASSES
    )

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        engine = model or await asyncio.to_thread(SmolLM2, parallel=slots)
        executor = QueuedExecutor(engine, controller=controller, thread_pool_size=slots, max_dead_letters=0)
        registry = CollectorRegistry()
        registry.register(PoolCollector(controller, executors=[executor]))
        app.state.executor, app.state.registry = executor, registry
        async with executor.lifespan():
            yield

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/models", models),
            Route("/health", health),
            Route("/metrics", metrics),
        ],
        exception_handlers=dict.fromkeys((BadRequest, JSONDecodeError, UnicodeDecodeError), bad_request),
        lifespan=lifespan,
    )
    app.add_middleware(
        QoSAdmission,
        controller=controller,
        tenants=[
            Tenant(name=name, tier=tier, keys=[hashlib.sha256(key.encode()).hexdigest()])
            for key, (name, tier) in KEYS.items()
        ],
        anonymous_priority="batch",
        paths={"/v1/chat/completions": Classification(cost=USUAL_TOKENS)},
        exempt_paths=["/v1/models", "/health", "/metrics"],
        cancel_on_disconnect=True,  # Nobody reads the answer: stop making it.
    )
    app.state.controller = controller
    return app


app = create_app()
