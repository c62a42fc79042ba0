"""The queue that should stand in front of every model server.

    HTTP request -> asgi: classify -> controller.acquire -> core.offer -> permit -> app or executor -> response
                                            ^                                            |
                                            +---------- core.release (one Sample) <------+

`AdmissionController` is the pool in this process, `QoSAdmission` the ASGI middleware around it, `QueuedExecutor` the
worker pool, and `RedisPool` says where a pool is kept that many processes share. These names are public, and so is what
the reference documents of `admission.asgi`, `.config`, `.errors`, `.events`, `.executor`, `.observability` and
`.testing`; everything else may change.
"""

from admission import core as _core
from admission.asgi import QoSAdmission
from admission.backends.redis import RedisPool
from admission.config import Settings
from admission.controller import AdmissionController
from admission.errors import (
    AdmissionError,
    Closed,
    Evicted,
    NotRunning,
    PermanentError,
    QueueFull,
    Refusal,
    Rejected,
    TaskCancelled,
    TaskTimeout,
    WaitTimeout,
)
from admission.executor import QueuedExecutor, default_executor
from admission.permit import Permit, current_permit, current_ticket
from admission.policy.limit import AimdLimit, FixedLimit, GradientLimit, Limit, VegasLimit, WindowedLimit
from admission.policy.retry import Retry
from admission.types import (
    BackpressureMode,
    Outcome,
    Priority,
    PriorityClass,
    Reason,
    Sample,
    Snapshot,
    Ticket,
    TicketStatus,
)

__compiled__ = not _core.__file__.endswith(".py")
"""Whether this is the compiled build; see the how-to of that name."""

__all__ = [
    "AdmissionController",
    "AdmissionError",
    "AimdLimit",
    "BackpressureMode",
    "Closed",
    "Evicted",
    "FixedLimit",
    "GradientLimit",
    "Limit",
    "NotRunning",
    "Outcome",
    "PermanentError",
    "Permit",
    "Priority",
    "PriorityClass",
    "QoSAdmission",
    "QueueFull",
    "QueuedExecutor",
    "Reason",
    "RedisPool",
    "Refusal",
    "Rejected",
    "Retry",
    "Sample",
    "Settings",
    "Snapshot",
    "TaskCancelled",
    "TaskTimeout",
    "Ticket",
    "TicketStatus",
    "VegasLimit",
    "WaitTimeout",
    "WindowedLimit",
    "current_permit",
    "current_ticket",
    "default_executor",
]
