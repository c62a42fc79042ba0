"""A function as a task: called, it just runs; enqueued, it becomes a job.

The body of a job is JSON: {"task": name, "args": {parameter: value}, "options"?: …, "metadata"?: …, "context"?: …}.
Only what differs from the task's own options is in it. Nothing in it names code: `task` is looked up among registered
names.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, TypedDict, Unpack

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json
from typing_extensions import TypeVar

from admission.errors import BadArguments, PayloadTooLarge, UnknownTask
from admission.jobs import script
from admission.jobs.arguments import Arguments, Named, is_strict_json, shortened
from admission.policy.fairness import Flow
from admission.policy.retry import Retry
from admission.runners import is_async
from admission.types import MAX_TENANT_BYTES, Priority, within

if TYPE_CHECKING:
    from admission.jobs.job import Job
    from admission.jobs.queue import JobQueue

__all__ = ["Call", "EnqueueOptions", "NewJob", "PreparedJob", "Task", "TaskOptions", "name_in"]

P = ParamSpec("P")
R = TypeVar("R")

LONGEST_DELAY = 10 * 365 * 86400.0
"""Seconds."""

LONGEST_TIMEOUT = 30 * 86400.0
"""Seconds."""

MOST_COST = 1e6

NO_RETRY = Retry.none()

TASK_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")

_WRITTEN_NAME = re.compile(r'\{"task":"([A-Za-z0-9_.-]{1,128})"')


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """How the jobs of a task run."""

    retry: Retry = NO_RETRY
    timeout: float | None = None
    """Seconds one attempt may take; None: as long as it likes."""
    cost: float = 1.0
    """What fairness charges the tenant."""
    store_as: str | None = None
    """The name under which the result is kept for other tasks to `pull`."""
    on_success: str | None = None
    """The task that is enqueued when the job has succeeded."""
    on_failure: str | None = None
    """… when it has failed for good."""
    on_timeout: str | None = None
    """… when it has failed for good by a timeout."""
    webhook: str | None = None
    """The URL that is told when the job has succeeded, or failed for good."""


class EnqueueOptions(TypedDict, total=False):
    """What `Task.with_options` takes; see `JobQueue.task` for those a task has as well."""

    priority: Priority | str | None
    tenant: str
    delay: float
    """Seconds until the job is ready."""
    dedup_key: str | None
    """While a job with this key is queued, delayed or running, there is no second one: the `Job` is that one."""
    metadata: Mapping[str, object] | None
    """JSON that stays with the job, for people and hooks."""
    retry: Retry | None
    timeout: float | None
    cost: float
    store_as: str | None
    on_success: str | Task[..., object] | None
    on_failure: str | Task[..., object] | None
    on_timeout: str | Task[..., object] | None
    webhook: str | None


class NewJob(NamedTuple):
    """A job ready to be enqueued: what `PreparedJob.job(…)` gives, for `JobQueue.enqueue_many`."""

    prepared: PreparedJob[..., Any]
    body: str


class Call(NamedTuple):
    """A job, read from its body by whoever is to run it."""

    args: tuple[object, ...]
    kwargs: Named
    options: TaskOptions
    metadata: Mapping[str, object]
    context: Mapping[str, object]


class Task(Generic[P, R]):
    """A registered function. Made by `@jobs.task`.

    Attributes:
        name: Unique in its queue; what a job names it by.
        function: What was decorated.
        options: Those of its jobs, unless they say otherwise.
        rank: Rank of the class of its jobs.
        http: Whether it may be enqueued over HTTP, where `JobQueue.asgi` names no tasks.
    """

    def __init__(
        self,
        jobs: JobQueue,
        function: Callable[P, R],
        *,
        name: str,
        rank: int,
        options: TaskOptions,
        http: bool = False,
    ) -> None:
        self.jobs = jobs
        self.function = function
        self.name = name
        self.rank = rank
        self.options = options
        self.http = http
        self.is_async = is_async(function)
        self._arguments: Arguments | None = None
        functools.update_wrapper(self, function)
        try:
            self._arguments = Arguments(name, function)
        except NameError:
            self._arguments = None  # An annotation names what comes later in the module: it is read at first use.
        self.prefix = b'{"task":"%b","args":' % name.encode()
        """What the body of each of its jobs begins with."""
        self._prepared: PreparedJob[P, R] | None = None

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function, here and now."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Task {self.name!r}>"

    @property
    def arguments(self) -> Arguments:
        """What it may be given. Raises NameError when an annotation names what is not defined."""
        if self._arguments is None:
            self._arguments = Arguments(self.name, self.function)
        return self._arguments

    @property
    def _plain(self) -> PreparedJob[P, R]:
        """Without options; made at first use, when the tasks it calls back are registered too."""
        if self._prepared is None:
            self._prepared = PreparedJob(self, {})
        return self._prepared

    # ------------------------------------------------------------------ to enqueue

    def with_options(self, **options: Unpack[EnqueueOptions]) -> PreparedJob[P, R]:
        """The same task with these options: a frozen builder, enqueued as often as wanted.

        Raises:
            ValueError: An option is outside its range.
            UnknownTask: A callback names no task of the queue.
        """
        return PreparedJob(self, options)

    def job(self, /, *args: P.args, **kwargs: P.kwargs) -> NewJob:
        """A job to be enqueued by `JobQueue.enqueue_many`. Raises as `enqueue`, but for what a server says."""
        return self._plain.job(*args, **kwargs)

    async def enqueue(
        self,
        /,
        *args: object,
        tenant: str = "",
        priority: Priority | str | None = None,
        delay: float = 0.0,
        dedup_key: str | None = None,
        metadata: Mapping[str, object] | None = None,
        **kwargs: object,
    ) -> Job:
        """Have it run by a worker, some time, at least once. When this returns, the server has the job.

        Args:
            args, kwargs: For the function. One of its parameters that is named like an option here is given by
                position, or after `with_options()`.
            tenant: Whoever shares the class fairly with others; at most 128 bytes.
            priority: None: the task's.
            delay: Seconds until it is ready.
            dedup_key: While a job with this key is queued, delayed or running, there is no second one.
            metadata: JSON that stays with the job.

        Raises:
            BadArguments: The arguments do not fit the function. Nothing was stored.
            PayloadTooLarge: The job is larger than the queue's `max_payload_bytes`.
            ValueError: An option is outside its range.
            QueueFull: The queue has as many jobs as it may (REJECT).
            WaitTimeout: There was no room within the queue's `max_wait` (BLOCK).
            Unavailable: The server does not answer, or has no memory left.
        """
        if tenant or priority is not None or delay or dedup_key is not None or metadata is not None:
            prepared: PreparedJob[..., R] = PreparedJob(
                self,
                {
                    "tenant": tenant,
                    "priority": priority,
                    "delay": delay,
                    "dedup_key": dedup_key,
                    "metadata": metadata,
                },
            )
        else:
            prepared = self._plain
        return await self.jobs.enqueue(prepared.job(*args, **kwargs))

    def enqueue_sync(
        self,
        /,
        *args: object,
        tenant: str = "",
        priority: Priority | str | None = None,
        delay: float = 0.0,
        dedup_key: str | None = None,
        metadata: Mapping[str, object] | None = None,
        **kwargs: object,
    ) -> Job:
        """As `enqueue`, for callers that block: threads and scripts.

        Raises:
            NotRunning: Called on an event loop, which it would hold up.
        """
        options: EnqueueOptions = {
            "tenant": tenant,
            "priority": priority,
            "delay": delay,
            "dedup_key": dedup_key,
            "metadata": metadata,
        }
        return self.jobs.sync.enqueue(PreparedJob[..., R](self, options).job(*args, **kwargs))

    # ------------------------------------------------------------------ to run

    def open(self, body: str) -> Call:
        """How to run a job of this task, its arguments checked again.

        Raises:
            BadArguments: They do not fit the function (any more), or the body is none of such a job.
        """
        arguments = self.arguments
        stored: dict[str, Any] = arguments.read(body)
        args, kwargs = arguments.call(stored["args"])
        said = stored.get("options")
        return Call(
            args,
            kwargs,
            self._options_said(said) if said else self.options,
            stored.get("metadata", _NOTHING),
            stored.get("context", _NOTHING),
        )

    def _options_said(self, said: Mapping[str, object]) -> TaskOptions:
        """The task's options, with what a body says instead."""
        try:
            unknown = said.keys() - _OPTION_NAMES
            if unknown:
                raise ValueError(f"there is no option {sorted(unknown)[0]!r}")
            changed = dict(said)
            if changed.get("retry") is not None:
                # Which errors are worth another try is code, and stays the task's.
                if "retry_on" in changed["retry"]:  # type: ignore[operator]
                    raise ValueError("retry_on cannot be said by a job")
                changed["retry"] = Retry.model_validate(
                    {**changed["retry"], "retry_on": self.options.retry.retry_on}  # type: ignore[dict-item]
                )
            options = check_options(replace(self.options, **changed))  # type: ignore[arg-type]
            self.jobs.check_callbacks(options)
        except (ValueError, TypeError, ValidationError, UnknownTask) as error:
            raise BadArguments(f"task {self.name!r}: options of the job: {error}", task=self.name) from error
        return options


class PreparedJob(Generic[P, R]):
    """A task with its options: what `with_options` returns. Frozen: each step gives a new one.

    urgent = sync_user.with_options(priority="high", tenant="acme", timeout=5)
    job = await urgent.enqueue(42)
    """

    __slots__ = ("_most_bytes", "_options", "_tail", "how", "task")

    def __init__(self, task: Task[P, R], options: EnqueueOptions) -> None:
        self.task = task
        self._options = options
        jobs = task.jobs
        tenant = check_name("tenant", options.get("tenant") or "", empty=True)
        priority = options.get("priority")
        rank = task.rank if priority is None else jobs.rank_of(priority)
        delay = options.get("delay", 0.0)
        within("delay", delay, 0, LONGEST_DELAY)
        dedup_key = options.get("dedup_key")
        dedup_key = "" if dedup_key is None else check_name("dedup_key", dedup_key)
        own, said = task.options, _said(options)
        jobs.check_callbacks(own)
        if said:
            said_options = check_options(replace(own, **said))  # type: ignore[arg-type]
            jobs.check_callbacks(said_options)
            own = said_options
        charge = Flow(tenant, jobs.classes[rank].weights.get(tenant, 1.0)).charge(own.cost)
        self.how = script.how(rank, tenant, charge, round(delay * 1e6), dedup_key)
        """As the server is told: everything but its id and its body."""
        self._tail = self._rest_of_body(said, options.get("metadata"))
        self._most_bytes = jobs.max_payload_bytes

    def with_options(self, **options: Unpack[EnqueueOptions]) -> PreparedJob[P, R]:
        """The same with these options, beside those it has. Raises as `Task.with_options`."""
        return PreparedJob(self.task, {**self._options, **options})

    def job(self, /, *args: P.args, **kwargs: P.kwargs) -> NewJob:
        """A job to be enqueued by `JobQueue.enqueue_many`. Raises as `Task.enqueue`, but for what a server says."""
        task = self.task
        body = task.prefix + task.arguments.to_json(args, kwargs) + self._tail
        if len(body) > self._most_bytes:
            raise too_large(f"a job of task {task.name!r}", len(body), self._most_bytes)
        return NewJob(self, body.decode())

    async def enqueue(self, /, *args: P.args, **kwargs: P.kwargs) -> Job:
        """Have it run by a worker; see `Task.enqueue`. All arguments are the function's."""
        return await self.task.jobs.enqueue(self.job(*args, **kwargs))

    def enqueue_sync(self, /, *args: P.args, **kwargs: P.kwargs) -> Job:
        """As `enqueue`, for callers that block. Raises NotRunning on an event loop."""
        return self.task.jobs.sync.enqueue(self.job(*args, **kwargs))

    def __repr__(self) -> str:
        return f"<PreparedJob of {self.task.name!r}>"

    def _rest_of_body(self, said: Mapping[str, object], metadata: Mapping[str, object] | None) -> bytes:
        rest = b""
        if said:
            written = {
                name: value.model_dump(mode="json", exclude={"retry_on"}) if isinstance(value, Retry) else value
                for name, value in said.items()
            }
            rest += b',"options":' + to_json(written)
        if metadata:
            rest += b',"metadata":' + json_of("metadata", dict(metadata), self.task.name)
        return rest + b"}"


def name_in(body: str) -> str:
    """The name of the task a body is for; empty when it is none."""
    written = _WRITTEN_NAME.match(body)
    if written is not None:
        return written[1]
    try:
        data = from_json(body)
    except ValueError:
        return ""
    name = data.get("task") if isinstance(data, dict) else None
    return name if isinstance(name, str) else ""


def check_options(options: TaskOptions) -> TaskOptions:
    """*options*, if each is in its range. Raises ValueError naming the option."""
    within("timeout", options.timeout, 0, LONGEST_TIMEOUT, above_low=True)
    within("cost", options.cost, 0, MOST_COST)
    if not isinstance(options.retry, Retry):
        raise ValueError(f"retry is {options.retry!r}: it must be a Retry, such as Retry.exponential()")
    if options.store_as is not None:
        check_name("store_as", options.store_as)
    return options


def check_name(option: str, name: str, *, empty: bool = False) -> str:
    """*name*, if it is one: at most 128 bytes, no control characters. Raises ValueError naming the option."""
    if not isinstance(name, str):
        raise ValueError(f"{option} is {shortened(name)}: it must be a str")
    if name.isascii() and name.isprintable() and len(name) <= MAX_TENANT_BYTES and (name or empty):
        return name
    size = len(name.encode("utf-8", "surrogatepass"))
    if not (name or empty) or size > MAX_TENANT_BYTES:
        least = 0 if empty else 1
        raise ValueError(f"{option} is {shortened(name)}, {size} bytes: it must be {least} to {MAX_TENANT_BYTES}")
    if not name.isprintable():
        raise ValueError(f"{option} is {shortened(name)}: control characters are not allowed")
    return name


def json_of(what: str, value: object, task: str = "") -> bytes:
    """*value* as JSON.

    Raises:
        BadArguments: It cannot be written as JSON, or has NaN or an infinity in it.
    """
    where = f"task {task!r}: {what}" if task else what
    try:
        text = to_json(value, inf_nan_mode="constants")
    except (PydanticSerializationError, ValueError) as error:
        raise BadArguments(f"{where} cannot be written as JSON: {error}", task=task, argument=what) from error
    if (b"NaN" in text or b"Infinity" in text) and not is_strict_json(text):
        raise BadArguments(f"{where} has NaN or an infinity in it, which JSON cannot say", task=task, argument=what)
    return text


def too_large(what: str, size: int, limit: int) -> PayloadTooLarge:
    """The error for what is larger than *limit* bytes."""
    return PayloadTooLarge(
        f"{what} has {size:,} bytes: it must be at most {limit:,} (max_payload_bytes)", size=size, limit=limit
    )


_NOTHING: Mapping[str, object] = {}

_OPTION_NAMES = frozenset(field.name for field in fields(TaskOptions))

_CALLBACKS = ("on_success", "on_failure", "on_timeout")


def callback_name(callback: str | Task[..., object] | None) -> str | None:
    """The name of a task that is given as such, or by name."""
    return callback.name if isinstance(callback, Task) else callback


def _said(options: EnqueueOptions) -> dict[str, object]:
    """Those of *options* that a worker has to know, as `TaskOptions` has them."""
    said = {name: value for name, value in options.items() if name in _OPTION_NAMES}
    for name in _CALLBACKS:
        if name in said:
            said[name] = callback_name(said[name])  # type: ignore[arg-type]
    if "retry" in said and said["retry"] is None:
        said["retry"] = NO_RETRY
    return said
