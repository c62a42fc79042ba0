"""What settings mean, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from admission.backends.redis.address import masked
from admission.config import Settings
from admission.types import PriorityClass


def describe(settings: Settings) -> Iterator[str]:
    """One sentence or two for each thing the settings decide, most important first."""
    yield _slots(settings) + " " + _line(settings)
    yield _full_line(settings)
    yield from _sharing(settings)
    if settings.refuse_hopeless:
        yield "Whoever would have to wait longer than it can is refused on arrival."
    if settings.max_queued_per_tenant is not None:
        yield f"Of one tenant {settings.max_queued_per_tenant} may wait in each class."
    classes = settings.build_classes()
    yield "Classes, served in this order: " + ", ".join(found.name for found in classes) + "."
    for found in classes:
        if rules := "; ".join(_rules(settings, found)):
            yield f"Class {found.name}: {rules}."
    yield from _fairness(settings)
    yield from _callers(settings)
    yield from _http(settings)
    yield from _watching(settings)


def _slots(settings: Settings) -> str:
    limit = settings.limit
    if limit is None:
        return f"At most {_requests(settings.max_concurrency)} at once."
    return (
        f"How many requests run at once adapts to the backend ({limit.kind}): at least {limit.least}, at most "
        f"{limit.most}, {limit.start} to begin with."
    )


def _requests(count: int) -> str:
    return "1 request runs" if count == 1 else f"{count} requests run"


def _line(settings: Settings) -> str:
    room = f"{settings.max_queue_size} more" if settings.max_queue_size else "Any number of others"
    wait = "as long as it takes" if settings.max_wait is None else f"{seconds(settings.max_wait)} at most"
    return f"{room} may wait, {wait}."


def _full_line(settings: Settings) -> str:
    match settings.mode:
        case "shadow":
            return (
                "Shadow mode: nobody is held back or refused. What would have happened is counted, and every request "
                "goes through at once."
            )
        case "block":
            return (
                f"When the line is full, up to {settings.max_lobby_size} callers wait for room in it; higher classes "
                "push lower ones out."
            )
    return (
        f"When the line is full, newcomers are refused with status {settings.refusal_status}; higher classes push "
        "lower ones out."
    )


def _sharing(settings: Settings) -> Iterator[str]:
    shared = settings.shared_pool()
    if shared is None:
        return
    yield (
        f"Limit, line and shares are those of all processes together that keep pool {settings.name!r} in "
        f"{place(shared.url)}, namespace {shared.namespace!r}."
    )
    lets_in = {
        "degrade": "its share of the limit by itself",
        "open": "everyone",
        "closed": f"nobody, with status {settings.draining_status}",
    }[shared.on_outage]
    yield (
        f"While that cannot be reached, each process lets in {lets_in}. The slots of a process that was killed are "
        f"free again after {seconds(shared.lease)}."
    )


def place(url: str) -> str:
    """Where a shared pool is, without its password."""
    return "a private Valkey of this user" if url == "embedded" else masked(url)


def _rules(settings: Settings, found: PriorityClass) -> Iterator[str]:
    if found.exempt:
        yield "let in at once, always, and held back by nothing"
    if found.guaranteed:
        yield f"sure of {found.guaranteed:.0%} of the starts while it has waiters"
    if found.max_delay is not None:
        yield f"goes first once it has waited {seconds(found.max_delay)}"
    if found.ceiling < 1:
        slots = "" if settings.limit else f" ({max(1, int(found.ceiling * settings.max_concurrency))})"
        yield f"holds at most {found.ceiling:.0%} of the slots{slots}"
    if found.rate is not None:
        yield f"starts at most {found.rate:g} a second"
    if found.max_queued is not None:
        yield f"at most {found.max_queued} may wait"
    if found.max_wait is not None:
        yield f"waits {seconds(found.max_wait)} at most"
    if found.codel_target is not None:
        yield f"sheds waiters when nobody waits less than {seconds(found.codel_target)}"


def _fairness(settings: Settings) -> Iterator[str]:
    weights = {tenant.name: tenant.weight for tenant in settings.tenants if tenant.weight != 1}
    yield "Within a class tenants share fairly" + _counting(weights) + "."
    for table in settings.classes or ():
        if table.weights:
            yield f"In class {table.name}" + _counting(table.weights).removeprefix(";") + "."


def _counting(weights: Mapping[str, float]) -> str:
    times = ", ".join(f"{tenant} counts {weight:g}" for tenant, weight in weights.items())
    return f"; {times} times" if times else ""


def _callers(settings: Settings) -> Iterator[str]:
    names = [found.name for found in settings.build_classes()]
    default = settings.anonymous_priority or settings.default_priority or default_class(names)
    keys = sum(len(tenant.keys) for tenant in settings.tenants)
    if keys:
        yield f"{keys} API keys of {len(settings.tenants)} tenants are known; without one a request is {default}."
    else:
        yield f"No API keys are known: every request is {default} unless a path or a header says otherwise."
    if settings.trust_headers:
        yield (
            "Priority and tenant headers are believed. Do this only behind a gateway that sets them and strips the "
            "client's own."
        )
    else:
        yield "Priority headers may lower a request's class, never raise it."
    for path, said in settings.paths.items():
        if said.priority is not None:
            yield f"Requests to {path} are {said.priority}."


def default_class(names: list[str]) -> str:
    """The class of whoever names none: `normal`, or the middle one."""
    return "normal" if "normal" in names else names[(len(names) - 1) // 2]


def _http(settings: Settings) -> Iterator[str]:
    if settings.exempt_paths:
        yield "Never held back: " + ", ".join(settings.exempt_paths) + "."
    if settings.status_path is None:
        yield "There are no status pages."
    elif settings.status_token is not None:
        yield f"Status pages at {settings.status_path}, for whoever has the token."
    elif settings.status_loopback:
        yield f"Status pages at {settings.status_path}, for this machine only."
    else:
        yield f"Status pages at {settings.status_path} answer nobody: there is no status_token."


def _watching(settings: Settings) -> Iterator[str]:
    if settings.metrics_port is not None:
        yield (
            f"Metrics named {settings.metrics_namespace}_… on http://{settings.metrics_host}:{settings.metrics_port}/."
        )
    if settings.log_events:
        yield f"Refusals are logged as {settings.log_format}."
    if settings.tracing:
        yield "Every wait is a span for OpenTelemetry."


def seconds(value: float) -> str:
    """`1.5 s`, `5 min`."""
    return f"{value / 60:g} min" if value >= 120 and value % 60 == 0 else f"{value:g} s"
