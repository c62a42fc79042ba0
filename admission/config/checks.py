"""Options that are right by themselves and wrong together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from admission.asgi.classify import DEFAULT_TIERS, is_plain, normalised
from admission.asgi.options import SharedPoolOptions
from admission.backends.redis.address import masked
from admission.config.file import Key
from admission.config.messages import suggestion
from admission.types import MAX_CLASSES

if TYPE_CHECKING:
    from admission.config.settings import Settings


def contradictions(settings: Settings) -> Iterator[tuple[Key, object, str]]:
    """Options that are right by themselves and wrong together: key, value, what is allowed."""
    classes = settings.build_classes()
    names = [found.name for found in classes]
    if not 1 <= len(classes) <= MAX_CLASSES:
        yield ("classes",), names, f"a pool has 1 to {MAX_CLASSES} classes"
    for index, name in enumerate(names):
        if name in names[:index]:
            yield ("classes", index, "name"), name, "each class needs a name of its own"
    if (total := sum(found.guaranteed for found in classes)) > 1:
        yield ("classes",), f"a list with guarantees of {total:g}", "together they must be at most 1"
    for key, name in _class_names(settings):
        if name not in names:
            yield key, name, f"it must be a class: {', '.join(names)}{suggestion(name, names)}"
    tiers = set(names) | set(settings.tiers if settings.tiers is not None else DEFAULT_TIERS)
    seen: dict[str, str] = {}
    for index, tenant in enumerate(settings.tenants):
        if tenant.name in [other.name for other in settings.tenants[:index]]:
            yield ("tenants", index, "name"), tenant.name, "each tenant needs a name of its own"
        if tenant.tier is not None and tenant.tier not in tiers:
            rule = f"it must be a tier or a class: {', '.join(sorted(tiers))}{suggestion(tenant.tier, tiers)}"
            yield ("tenants", index, "tier"), tenant.tier, rule
        for digest in tenant.keys:
            if seen.setdefault(digest, tenant.name) != tenant.name:
                rule = f"tenants {seen[digest]!r} and {tenant.name!r} have a key in common"
                yield ("tenants", index, "keys"), None, rule
    for path in settings.paths:
        where = path.removesuffix("/*") or "/"
        if "*" in where or normalised(where) != where:
            yield ("paths", path), path, "it must be a plain path such as '/v1/models' or '/v1/batches/*'"
    for path in settings.exempt_paths:
        if not is_plain(path):
            yield ("exempt_paths",), path, "it must be a plain path such as '/health'"
    yield from _of_the_shared_pool(settings)


def _of_the_shared_pool(settings: Settings) -> Iterator[tuple[Key, object, str]]:
    """A URL that is none, and what makes no sense without one."""
    if settings.redis is None:
        for option in SharedPoolOptions.__annotations__:
            if option != "redis" and option in settings.model_fields_set:
                yield (option,), getattr(settings, option), "it needs redis, which says where the pool is"
        return
    if settings.redis_timeout > settings.redis_lease / 3:
        rule = f"it must be at most a third of redis_lease, {settings.redis_lease:g}"
        yield ("redis_timeout",), settings.redis_timeout, rule
        return
    url = settings.redis.get_secret_value()
    try:
        settings.shared_pool()
    except ValueError as error:
        yield ("redis",), url, str(error).replace(f"the Redis URL {masked(url)!r}", "it")


def _class_names(settings: Settings) -> Iterator[tuple[Key, str]]:
    """Every place where a class is named."""
    for option in ("default_priority", "anonymous_priority"):
        if (name := getattr(settings, option)) is not None:
            yield (option,), name
    for tier, name in (settings.tiers or {}).items():
        yield ("tiers", tier), name
    for path, said in settings.paths.items():
        if said.priority is not None:
            yield ("paths", path), said.priority
