"""A FastAPI app behind admission control: eight requests at a time, customers by tier, batches last.

    uvicorn fastapi_app:app --app-dir examples
    curl -i localhost:8000/v1/answer -H 'Authorization: Bearer demo-pro-key' -d '{"question": "six by seven?"}' \
        -H 'Content-Type: application/json'
    curl -s localhost:8000/-/admission/status
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

import anyio
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from admission import QoSAdmission, current_ticket
from admission.asgi import Tenant


def sha256(key: str) -> str:
    """What belongs in a configuration instead of the key."""
    return hashlib.sha256(key.encode()).hexdigest()


app = FastAPI(title="Answers")
app.add_middleware(
    QoSAdmission,
    max_concurrency=8,
    max_queue_size=100,
    max_wait=30.0,
    tenants=[
        Tenant(name="initech", tier="enterprise", keys=[sha256("demo-enterprise-key")]),
        Tenant(name="hooli", tier="pro", keys=[sha256("demo-pro-key")]),
    ],
    paths={"/v1/batches/*": "low"},
)


class Question(BaseModel):
    """What is asked."""

    question: str


@app.post("/v1/answer")
async def answer(question: Question) -> dict[str, str]:
    """An answer, and who got it."""
    await anyio.sleep(0.05)  # Your model.
    ticket = current_ticket()
    return {"answer": "42", "tenant": ticket.tenant if ticket else "", "class": ticket.priority if ticket else ""}


@app.post("/v1/stream")
async def stream(question: Question) -> StreamingResponse:
    """The same word by word. The slot is held until the last one."""

    async def words() -> AsyncIterator[str]:
        for word in ("forty", "two"):
            await anyio.sleep(0.05)
            yield f"data: {word}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(words(), media_type="text/event-stream")


@app.post("/v1/batches/run")
async def batch(question: Question) -> dict[str, str]:
    """Has the class `low`, whoever asks."""
    return await answer(question)


@app.get("/health")
async def health() -> dict[str, str]:
    """Never waits."""
    return {"status": "ok"}
