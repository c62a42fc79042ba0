"""Tasks through a pool: `QueuedExecutor`, its workers and handles.

submit -> Assignment (the handle) -> controller: line, slots -> Crew: a worker -> Runner: loop, thread or process
                ^                                                  |
                +------------- retry, without a slot <-------------+
"""

from admission.executor.dead_letters import DeadLetter, DeadLetters
from admission.executor.default import default_executor
from admission.executor.handle import Handle, TaskStatus, Update
from admission.executor.prepared import PreparedTask
from admission.executor.queued import QueuedExecutor
from admission.executor.status import ExecutorStatus, WorkerHealth

__all__ = [
    "DeadLetter",
    "DeadLetters",
    "ExecutorStatus",
    "Handle",
    "PreparedTask",
    "QueuedExecutor",
    "TaskStatus",
    "Update",
    "WorkerHealth",
    "default_executor",
]
