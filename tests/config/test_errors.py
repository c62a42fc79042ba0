"""A wrong option is named, with its value, what is allowed, and file and line where there is a file."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import pytest

from admission.config import Settings, SettingsError

File = Callable[..., str]


def error(**options: Any) -> str:
    """What is said about wrong options."""
    with pytest.raises(SettingsError) as caught:
        Settings(**options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_concurrency": 0}, "max_concurrency is 0: it must be at least 1"),
        ({"max_concurrency": 1.5}, "max_concurrency is 1.5: it must be a whole number"),
        ({"max_queue_size": "many"}, "max_queue_size is 'many': it must be a whole number"),
        ({"max_wait": -1}, "max_wait is -1: it must be at least 0"),
        ({"max_wait": float("nan")}, "max_wait is nan: it must be at least 0"),
        ({"mode": "blok"}, "mode is 'blok': it must be 'reject', 'block' or 'shadow'"),
        ({"retry_after": 90}, "retry_after is 90: it must be at least 1 and at most 30"),
        ({"refuse_hopeless": "maybe"}, "refuse_hopeless is 'maybe': it must be true or false"),
        ({"refusal_status": 200}, "refusal_status is 200: it must be at least 400 and at most 599"),
        ({"metrics_namespace": "my-app"}, "metrics_namespace is 'my-app': it must match"),
        ({"max_queu_size": 5}, "there is no option max_queu_size: did you mean max_queue_size?"),
        ({"classes": []}, "classes is []: a pool has 1 to 8 classes"),
        ({"classes": [{"name": "a"}, {"name": "a"}]}, "classes[1].name is 'a': each class needs a name of its own"),
        (
            {"classes": [{"name": "a", "ceiling": 2}]},
            "classes[0].ceiling is 2: it must be above 0 and at most 1",
        ),
        ({"classes": [{"nam": "a"}]}, "classes[0].name is missing"),
        (
            {"classes": [{"name": "a", "max_dely": 3}]},
            "there is no option classes[0].max_dely: did you mean max_delay?",
        ),
        ({"classes": [{"name": "a", "guaranteed": 0.6}, {"name": "b", "guaranteed": 0.6}]}, "together"),
        ({"limit": {"kind": "tcp"}}, "kind must be one of 'aimd', 'gradient', 'vegas'"),
        ({"limit": {}}, "it must have a kind"),
        ({"limit": {"kind": "aimd", "initial": 0}}, "limit.initial is 0: it must be at least 1"),
        ({"limit": {"kind": "aimd", "least": 9, "most": 3}}, "least ≤ initial ≤ most must hold"),
        ({"default_priority": "hihg"}, "it must be a class: critical, high, normal, low: did you mean high?"),
        ({"tiers": {"gold": "vip"}}, "tiers.gold is 'vip': it must be a class"),
        ({"tenants": [{"name": "a", "tier": "gold"}]}, "tenants[0].tier is 'gold': it must be a tier or a class"),
        ({"tenants": [{"name": "a"}, {"name": "a"}]}, "tenants[1].name is 'a': each tenant needs a name of its own"),
        ({"paths": {"/v1/*/x": "low"}}, "it must be a plain path"),
        ({"paths": {"/v1": "lwo"}}, "paths.\"/v1\" is 'lwo': it must be a class"),
        ({"exempt_paths": ["/a//b"]}, "exempt_paths is '/a//b': it must be a plain path"),
        ({"trusted_proxies": ["10.0.0.0/33"]}, "trusted_proxies[0] is '10.0.0.0/33': it must be a network"),
    ],
)
def test_a_wrong_option_is_named_with_its_value_and_what_is_allowed(options: dict[str, Any], said: str) -> None:
    """One sentence a problem, in the option's own name."""
    assert said in error(**options)


def test_every_wrong_option_is_named_at_once() -> None:
    """One line each: nobody has to run it three times."""
    assert len(error(max_concurrency=0, max_wait=-1, mode="x").splitlines()) == 3


def test_it_is_a_value_error() -> None:
    """Who catches `ValueError` need not know ours."""
    assert issubclass(SettingsError, ValueError)


BAD_TOML = """\
[pool]
max_concurrency = 4

[http]
trust_headers = 7

[[classes]]
name = "a"

[[classes]]
name = "b"
ceiling = 3

[classes.weights]
"acme" = 0

[metrics]
port = 70000

[limit]
kind = "aimd"
most = 0
"""

BAD_YAML = """\
pool:
  max_concurrency: 4
  mode: blocked
classes:
  - name: a
    max_dely: 3
  - name: b
    guaranteed: 2
"""


@pytest.mark.parametrize(
    "said",
    [
        "admission.toml:5: http.trust_headers is 7: it must be true or false",
        "admission.toml:12: classes[1].ceiling is 3: it must be above 0 and at most 1",
        "admission.toml:15: classes[1].weights.acme is 0: it must be at least 0.001 and at most 1000",
        "admission.toml:18: metrics.port is 70000: it must be at least 0 and at most 65535",
        "admission.toml:22: limit.most is 0: it must be at least 1",
    ],
)
def test_a_toml_file_is_quoted_by_line_and_key(file: File, said: str) -> None:
    """The key as it stands in the file, headings included."""
    assert said in error(config=file(BAD_TOML)).splitlines()


@pytest.mark.parametrize(
    "said",
    [
        "admission.yaml:3: pool.mode is 'blocked': it must be 'reject', 'block' or 'shadow'",
        "admission.yaml:6: there is no option classes[0].max_dely: did you mean max_delay?",
        "admission.yaml:8: classes[1].guaranteed is 2: it must be at least 0 and at most 1",
    ],
)
def test_a_yaml_file_is_quoted_by_line_and_key(file: File, said: str) -> None:
    """The same for YAML."""
    assert said in error(config=file(BAD_YAML, "admission.yaml")).splitlines()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.toml", "max_wait = \n", "a.toml:1: no valid TOML"),
        ("a.toml", "[pool]\nmax_concurency = 3\n", "a.toml:2: there is no option pool.max_concurency: did you mean"),
        ("a.toml", "[pool]\ntrust_headers = true\n", "a.toml:2: there is no option pool.trust_headers: it belongs"),
        ("a.toml", "max_wait = 1\n[pool]\nmax_wait = 2\n", "a.toml:3: pool.max_wait is there twice, also at a.toml:1"),
        ("a.toml", "pool = 3\n", "a.toml:1: [pool] must be a table of options"),
        ("a.toml", 'config = "b.toml"\n', "a.toml:1: a settings file cannot name another one"),
        ("a.toml", "[[clases]]\nname = 'x'\n", "a.toml:1: there is no option clases: did you mean classes?"),
        ("a.toml", 'default_priority = "x"\n', "a.toml:1: default_priority is 'x': it must be a class"),
        ("a.toml", 'classes = [\n  { name = "a", burst = 0 },\n]\n', "a.toml:1: classes[0].burst is 0: it must be"),
        ("a.yaml", "pool: [\n", "a.yaml:2: no valid YAML"),
        ("a.yaml", "max_wait: 1\nmax_wait: 2\n", "a.yaml:2: max_wait is there twice"),
        ("a.yaml", "- 1\n", "a.yaml:1: the file must be a table of options, not list"),
        ("a.ini", "x", "a.ini: a settings file must end in .toml, .yaml or .yml"),
    ],
)
def test_a_bad_file_is_named_with_its_line(file: File, name: str, text: str, said: str) -> None:
    """Whether its language is broken, a key is unknown or in the wrong place."""
    assert said in error(config=file(text, name))


def test_a_missing_file_is_named() -> None:
    """The first thing that goes wrong in a container."""
    assert error(config="nowhere.toml") == "nowhere.toml: there is no such file"


def test_a_wrong_variable_is_called_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in the environment is named as it stands there, not as the option."""
    monkeypatch.setenv("ADMISSION_MAX_WAIT", "soon")
    monkeypatch.setenv("ADMISSION_LIMIT__KIND", "vegas")
    monkeypatch.setenv("ADMISSION_LIMIT__MOST", "0")
    assert set(error().splitlines()) == {
        "ADMISSION_MAX_WAIT is 'soon': it must be a number",
        "ADMISSION_LIMIT.most is '0': it must be at least 1",
    }


def test_a_misspelt_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """An option that silently does nothing is worse than none."""
    monkeypatch.setenv("ADMISSION_MAX_QUEU_SIZE", "5")
    assert error() == "there is no variable ADMISSION_MAX_QUEU_SIZE: did you mean ADMISSION_MAX_QUEUE_SIZE?"


def test_the_place_is_that_of_the_value_that_won(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is right here and the keyword wrong, so the file is not blamed."""
    monkeypatch.setenv("ADMISSION_CONFIG", file("max_concurrency = 3\n"))
    assert error(max_concurrency=0) == "max_concurrency is 0: it must be at least 1"


@pytest.mark.parametrize(
    "options",
    [
        {"tenants": [{"name": "a", "keys": ["hunter2"]}]},
        {"tenants": [{"name": "a", "key": "hunter2"}]},
        {"tenants": {"a": "hunter2"}},
        {"status_token": ["hunter2"]},
    ],
)
def test_a_secret_in_the_wrong_place_is_not_shown(options: dict[str, Any]) -> None:
    """Neither in the sentence nor anywhere in the traceback, which ends up in logs."""
    with pytest.raises(SettingsError) as caught:
        Settings(**options)
    printed = "".join(traceback.format_exception(caught.value, chain=True, limit=0))
    assert "hunter2" not in printed


def test_a_plain_key_is_answered_with_how_to_hash_it() -> None:
    """The likeliest mistake has its cure in the message."""
    assert "sha256sum" in error(tenants=[{"name": "a", "keys": ["hunter2"]}])
