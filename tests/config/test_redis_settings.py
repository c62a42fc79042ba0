"""Where a shared pool is: said in the environment, in a file or to the middleware, and no password is shown."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import pytest

from admission import AdmissionController, QoSAdmission, RedisPool
from admission.backends.memory import MemoryBackend
from admission.backends.redis.backend import RedisBackend
from admission.config import Settings, SettingsError

File = Callable[..., str]
URL = "redis://user:hush-hush@cache:6379/2"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """An app that is never called."""


def error(**options: Any) -> str:
    """What is said about wrong options, traceback included."""
    with pytest.raises(SettingsError) as caught:
        Settings(**options)
    text = "".join(traceback.format_exception(caught.value))
    assert "hush" not in text
    return str(caught.value)


def test_keywords_environment_and_file_say_the_same(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three spellings of one pool."""
    said = RedisPool(URL, namespace="chat", on_outage="closed", lease=6.0, timeout=0.5)
    keywords = {
        "redis": URL,
        "redis_namespace": "chat",
        "on_outage": "closed",
        "redis_lease": 6,
        "redis_timeout": 0.5,
    }
    assert Settings(**keywords).shared_pool() == said
    below_a_heading = f'[redis]\nurl = "{URL}"\nnamespace = "chat"\non_outage = "closed"\nlease = 6\ntimeout = 0.5\n'
    assert Settings(config=file(below_a_heading)).shared_pool() == said
    for option, value in keywords.items():
        monkeypatch.setenv(f"ADMISSION_{option}".upper(), str(value))
    assert Settings().shared_pool() == said


def test_a_url_alone_needs_no_heading(file: File) -> None:
    """`redis = "…"` at the top of a file is the short form of the table."""
    assert Settings(config=file(f'redis = "{URL}"\n')).shared_pool() == RedisPool(URL)
    assert Settings(config=file(f"redis: {URL}\n", "a.yaml")).shared_pool() == RedisPool(URL)


def test_without_a_url_a_pool_is_its_process_s_own() -> None:
    """Nothing to connect to unless it is asked for."""
    assert Settings().shared_pool() is None
    assert Settings(redis="none").shared_pool() is None
    assert isinstance(Settings().build_controller()._backend, MemoryBackend)


def test_defaults_are_those_of_the_pool() -> None:
    """One place to look them up would do."""
    assert Settings(redis="embedded").shared_pool() == RedisPool("embedded")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"redis": "redis://:hush@h:99999"}, "redis is 'redis://:***@h:99999': it has the port '99999': it must be"),
        ({"redis": "cache:6379"}, "redis is 'cache:6379': it has no scheme: it must be one of redis, rediss"),
        ({"redis": 6379}, "redis is not shown here: it must be text"),
        ({"redis_lease": 3}, "redis_lease is 3.0: it needs redis, which says where the pool is"),
        ({"redis": URL, "redis_lease": 0.5}, "redis_lease is 0.5: it must be at least 1 and at most 600"),
        ({"redis": URL, "redis_timeout": 5}, "redis_timeout is 5.0: it must be at most a third of redis_lease, 12"),
        ({"redis": URL, "redis_namespace": "a b"}, "redis_namespace is 'a b': it must be 1 to 64 letters, digits"),
        ({"redis": URL, "on_outage": "panic"}, "on_outage is 'panic': it must be 'degrade', 'open' or 'closed'"),
    ],
)
def test_a_wrong_option_is_named_and_its_password_is_not(options: dict[str, Any], said: str) -> None:
    """Option, value and what is allowed; every password is `***`."""
    assert said in error(**options)


def test_a_wrong_url_is_found_where_it_stands(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    """File and line, or the variable."""
    name = file('[redis]\nurl = "redis://:hush@h/x"\n')
    assert error(config=name).startswith(f"{name}:2: redis.url is 'redis://:***@h/x': it has the database 'x'")
    monkeypatch.setenv("ADMISSION_REDIS", "redis://")
    assert error().startswith("ADMISSION_REDIS is 'redis://': it names no host")


def test_no_password_is_in_the_text_of_settings() -> None:
    """Neither in theirs nor in what they become."""
    settings = Settings(redis=URL)
    for shown in (settings, settings.shared_pool(), settings.build_controller(), settings.middleware_options()):
        assert "hush" not in repr(shown)
        assert "hush" not in str(shown)


def test_the_middleware_takes_a_url_or_a_pool() -> None:
    """Both become a controller of its own, whose pool is shared; without either it is in memory."""
    by_url = QoSAdmission(app, redis=URL, redis_namespace="chat", max_concurrency=3)
    by_pool = QoSAdmission(app, redis=RedisPool(URL, namespace="chat"), max_concurrency=3)
    for middleware in (by_url, by_pool):
        assert isinstance(middleware.controller._backend, RedisBackend)
        assert middleware.controller.limit == 3
    assert isinstance(QoSAdmission(app, redis=None, max_concurrency=2).controller._backend, MemoryBackend)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"redis_lease": 6.0}, "redis_lease is 6.0: it needs redis, which says where the pool is"),
        ({"on_outage": "open"}, "on_outage is 'open': it needs redis"),
        ({"redis": RedisPool(URL), "redis_timeout": 0.5}, "redis_timeout is 0.5: it is set in the RedisPool"),
        ({"redis": URL, "redis_lease": 0}, "redis_lease is 0: it must be at least 1 and at most 600"),
        ({"redis": URL, "redis_namespace": ""}, "redis_namespace is '': it must be 1 to 64 letters"),
        ({"redis": "redis://:hush@h:0"}, "the Redis URL 'redis://:***@h:0' has the port '0'"),
        ({"redis": 6379}, "redis is of type int: it must be a URL, a RedisPool or None"),
        (
            {"redis": URL, "controller": AdmissionController()},
            "redis was given along with controller: it is the controller's, and set there",
        ),
    ],
)
def test_the_middleware_names_a_wrong_option_as_its_own(options: dict[str, Any], said: str) -> None:
    """The options of a `RedisPool` have other names there."""
    with pytest.raises(ValueError, match="redis") as caught:
        QoSAdmission(app, **options)
    text = "".join(traceback.format_exception(caught.value))
    assert said in text
    assert "hush" not in text
