"""What a worker process is to do: from a `[workers.NAME]` table of a file, and from options, which win over it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, TypedDict

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from admission.cli.describe import seconds
from admission.config import SettingsError
from admission.config.file import Key, SettingsFile, read_settings_file
from admission.config.messages import Sources
from admission.config.tables import NoneOr, between, comma_separated
from admission.jobs.worker import EVERYBODY, MOST_THREADS, MOST_WORKERS
from admission.types import MAX_TENANT_BYTES

_HEADING = "workers"

MOST_PROCESSES = 256


def _tenants(value: object) -> object:
    names = comma_separated(value)
    if isinstance(names, list | tuple):
        if not names:
            raise _refused("it must name a tenant")
        sizes = [len(name.encode("utf-8", "surrogatepass")) for name in names if isinstance(name, str)]
        if not all(0 < size <= MAX_TENANT_BYTES for size in sizes):
            raise _refused(f"the name of a tenant has 1 to {MAX_TENANT_BYTES} bytes")
        if any(isinstance(name, str) and not name.isprintable() for name in names):
            raise _refused("the name of a tenant has no control characters")
    return names


def _refused(rule: str) -> PydanticCustomError:
    return PydanticCustomError("range", "{rule}", {"rule": rule})


Tenants = Annotated[tuple[str, ...], BeforeValidator(_tenants)]


class WorkerOptions(TypedDict, total=False):
    """What may be given on the command line in place of what the file says."""

    jobs: str
    workers: int
    threads: int
    tenants: str
    steal: str
    processes: int
    grace: float
    metrics_port: int
    log_format: str


class WorkerPlan(BaseModel):
    """One `[workers.NAME]` table: which jobs a worker takes, and how many at once.

    With `processes` above 1 there are as many workers like this, each a process of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    jobs: str = ""
    """`module:attribute` of the `JobQueue`."""
    workers: Annotated[int, between(1, MOST_WORKERS)] = 100
    """Jobs at once, in each process."""
    threads: Annotated[int, between(1, MOST_THREADS)] = 20
    """Of those, how many may be functions that block."""
    tenants: Annotated[Tenants | None, NoneOr] = None
    """Whose jobs are taken first. None: everyone's alike."""
    steal: Annotated[Tenants | None, NoneOr] = None
    """Whose jobs are taken while those tenants have none; `("*",)` is everyone."""
    processes: Annotated[int, between(1, MOST_PROCESSES)] = 1
    grace: Annotated[float, between(0, 86400)] = 30.0
    """Seconds that running jobs may go on after SIGTERM."""
    metrics_port: Annotated[Annotated[int, between(0, 65535)] | None, NoneOr] = None
    """Of the first process; the others' are the next ones."""
    log_format: Literal["text", "json"] = "text"

    @property
    def steals_from(self) -> str | tuple[str, ...]:
        """As `Worker` wants to be told."""
        return EVERYBODY if self.steal == (EVERYBODY,) else self.steal or ()


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    workers: dict[str, WorkerPlan] = Field(min_length=1)


class _Given(BaseModel):
    plan: WorkerPlan = Field(alias="-")


def read_plans(path: Path) -> dict[str, WorkerPlan]:
    """The workers a TOML or YAML file describes, by name.

    Raises:
        SettingsError: Something in it is wrong: file, line, key, value and what is allowed.
    """
    file = read_settings_file(path)
    if _HEADING not in file.values:
        raise SettingsError(f"{path}: there is no worker in it: it needs a table such as [{_HEADING}.fast]")
    try:
        return _File.model_validate(file.values).workers
    except ValidationError as error:
        told = _Sources(file)
        raise SettingsError("\n".join(told.sentence(found) for found in error.errors())) from None


def planned(path: Path | None, names: Iterable[str], options: WorkerOptions) -> dict[str, WorkerPlan]:
    """The workers to run, by name; without a file it is one without a name.

    Raises:
        SettingsError: Something in the file is wrong, an option is, there is no worker of that name, or a worker
            without a queue.
    """
    plans = {"": WorkerPlan()} if path is None else read_plans(path)
    for name in names:
        if name not in plans:
            raise SettingsError(f"there is no worker {name!r}: {path} has {', '.join(sorted(plans))}")
    chosen = tuple(names) or tuple(plans)
    found = {name: _with_options(plans[name], options) for name in chosen}
    for name, plan in found.items():
        if not plan.jobs:
            raise SettingsError(_without_queue(path, name))
    return found


def _with_options(plan: WorkerPlan, options: WorkerOptions) -> WorkerPlan:
    """*plan* with what was given on the command line."""
    given = {"-": {**plan.model_dump(), **options}}
    try:
        return _Given.model_validate(given).plan
    except ValidationError as error:
        sources = Sources(given, None, {}, {})
        told = [sources.sentence(found) for found in error.errors()]
        raise SettingsError("\n".join(_as_flag(sentence) for sentence in told)) from None


def _as_flag(sentence: str) -> str:
    """`-.metrics_port is …` is about `--metrics-port`."""
    option, verb, rest = sentence.partition(" is ")
    return f"--{option.rpartition('.')[2].replace('_', '-')}{verb}{rest}"


def about(name: str, plan: WorkerPlan) -> Iterator[str]:
    """What a worker does, in sentences."""
    who = f"Worker {name}" if name else "The worker"
    if plan.processes > 1:
        yield f"{who}: {plan.processes} processes, each with up to {plan.workers} jobs at once, {_threads(plan)}."
    else:
        yield f"{who}: up to {plan.workers} jobs at once, {_threads(plan)}."
    yield _whose(plan)
    yield f"On SIGTERM it takes no more and gives those that run {seconds(plan.grace)} to end."


def _threads(plan: WorkerPlan) -> str:
    return f"{min(plan.threads, plan.workers)} of them in threads"


def _whose(plan: WorkerPlan) -> str:
    if plan.tenants is None:
        return "It takes the jobs of all tenants, in fair order."
    first = f"It takes the jobs of {_listed(plan.tenants)}"
    if plan.steal is None:
        return f"{first}, in fair order, and no others."
    rest = "everyone else" if plan.steal == (EVERYBODY,) else _listed(plan.steal)
    return f"{first} first, in fair order; while they have none, those of {rest}."


def _listed(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _without_queue(path: Path | None, name: str) -> str:
    if path is None:
        return "there is nothing to work for: name a JobQueue as MODULE:JOBS, such as main:jobs"
    return f'{path}: worker {name!r} has no queue: say jobs = "main:jobs" in its table, or name one on the command line'


class _Sources(Sources):
    """Of what stands in the file of workers: no option of it comes from the environment."""

    def __init__(self, file: SettingsFile) -> None:
        origins: Mapping[str, Key] = {name: (name,) for name in file.values}
        super().__init__({}, file, origins, {"": [_HEADING], _HEADING: list(WorkerPlan.model_fields)})

    def _in_environment(self, option: str) -> bool:
        return False
