"""What a task may be given: its function's signature, as something that checks arguments and writes them as JSON."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NotRequired, get_type_hints

from pydantic import (
    ConfigDict,
    JsonValue,
    PydanticSchemaGenerationError,
    PydanticUndefinedAnnotation,
    TypeAdapter,
    ValidationError,
    with_config,
)
from pydantic_core import ErrorDetails, PydanticSerializationError, SchemaSerializer
from typing_extensions import TypedDict

from admission.errors import BadArguments

__all__ = ["Arguments", "Named", "shortened"]

Named = dict[str, object]
"""Arguments by the names of their parameters."""

RESERVED = ("tenant", "priority", "delay", "dedup_key", "metadata")
"""What `Task.enqueue` takes for itself."""

MOST_SHOWN = 80
"""Characters of a value that an error shows."""

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Arguments:
    """The arguments of one function. Made once per task, because making it is slow.

    A parameter without annotation takes what JSON can say. What has a default need not be given, and is not stored:
    when the job runs, the default is that of the code which runs it.

    Args:
        task: Name of the task, for errors.

    Raises:
        TypeError: A parameter is annotated with something that cannot be checked or written as JSON.
        NameError: An annotation, or a model it names, needs what is not defined (yet).
    """

    def __init__(self, task: str, function: Callable[..., object]) -> None:
        self.task = task
        self._signature = inspect.signature(function)
        parameters = self._signature.parameters.values()
        self._by_position = tuple(p.name for p in parameters if p.kind in _BY_POSITION)
        self._positional_only = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_ONLY)
        self._rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
        self._more = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None)
        self._plain = not (self._positional_only or self._rest or self._more)
        try:
            hints = get_type_hints(function, include_extras=True)
        except NameError as error:
            raise self._undefined(error) from error
        fields = {p.name: _field(p, hints.get(p.name, JsonValue)) for p in parameters}
        given = _checked(TypedDict("Given", fields))  # type: ignore[operator]
        adapter = self._adapter(given, fields)
        self._validate = adapter.validator.validate_python
        # Its own serializer: NaN is written as such, so that it can be seen and refused.
        self._write = SchemaSerializer(adapter.core_schema, {"ser_json_inf_nan": "constants"}).to_json
        stored = {
            "task": Literal[task],
            "args": given,
            "options": NotRequired[dict[str, JsonValue]],
            "metadata": NotRequired[dict[str, JsonValue]],
            "context": NotRequired[dict[str, JsonValue]],
        }
        self._read = TypeAdapter(_checked(TypedDict("Stored", stored))).validator.validate_json  # type: ignore[operator]

    def to_json(self, args: Sequence[object], kwargs: Named) -> bytes:
        """These arguments as a JSON object, checked.

        Raises:
            BadArguments: They do not fit; names the task, the argument, its value and what would be right.
        """
        try:
            given: Named = self._validate(self._named(args, kwargs))
        except ValidationError as error:
            raise self._unfit(error.errors()[0]) from error
        text = self._written(given)
        if text is None:
            raise self._unwritten(given)
        return text

    def _written(self, given: Named) -> bytes | None:
        """As JSON; None when that cannot say it."""
        try:
            text: bytes = self._write(given, by_alias=True)
        except (PydanticSerializationError, UnicodeError):
            return None
        if (b"NaN" in text or b"Infinity" in text) and not is_strict_json(text):
            return None
        return text

    def _unwritten(self, given: Named) -> BadArguments:
        for name, value in given.items():
            if self._written({name: value}) is None:
                why = (
                    f"argument {name!r} is {shortened(value)}: it must be what JSON can say, without NaN or infinities"
                )
                return self._refused(why, name)
        return self._refused("its arguments cannot be written as JSON")

    def read(self, body: str) -> dict[str, object]:
        """The body of a job, with its arguments by name, checked again: the code may have changed meanwhile.

        Raises:
            BadArguments: They do not fit (any more), or this is no body of such a job.
        """
        try:
            stored: dict[str, object] = self._read(body)
        except ValidationError as error:
            details = error.errors()[0]
            if details["loc"][:1] == ("args",):
                details["loc"] = details["loc"][1:]
                raise self._unfit(details) from error
            where = ".".join(map(str, details["loc"])) or "the whole"
            raise self._refused(f"its body is not that of a job: {where}: {details['msg']}") from error
        return stored

    def call(self, named: Named) -> tuple[tuple[object, ...], Named]:
        """How the function is called with arguments that were read."""
        if self._plain:
            return (), named
        given = dict(named)
        args = [given.pop(name) for name in self._by_position if self._rest and name in given]
        args += [given.pop(name) for name in self._positional_only if name in given]
        if self._rest:
            args += given.pop(self._rest, ())  # type: ignore[arg-type]
        if self._more:
            given.update(given.pop(self._more, {}))  # type: ignore[call-overload]
        return tuple(args), given

    def _named(self, args: Sequence[object], kwargs: Named) -> Named:
        names = self._by_position
        if self._plain and len(args) <= len(names):
            if not args:
                return kwargs
            named = dict(zip(names, args))  # noqa: B905 - what is not given may have a default.
            if not kwargs:
                return named
            if named.keys().isdisjoint(kwargs):
                return {**named, **kwargs}
        try:
            return dict(self._signature.bind_partial(*args, **kwargs).arguments)
        except TypeError as error:
            raise self._refused(str(error)) from error

    def _unfit(self, details: ErrorDetails) -> BadArguments:
        argument = str(details["loc"][0]) if details["loc"] else ""
        inside = "".join(f"[{part!r}]" for part in details["loc"][1:])
        if details["type"] == "missing" and not inside:
            hint = ""
            if argument in RESERVED:
                hint = f" (enqueue takes {argument}=… for itself: give it by position, or after with_options())"
            return self._refused(f"argument {argument!r} is missing{hint}", argument)
        if details["type"] == "extra_forbidden" and not inside:
            known = ", ".join(self._signature.parameters) or "none"
            return self._refused(f"there is no argument {argument!r}: the arguments are {known}", argument)
        seen = shortened(details["input"])
        return self._refused(f"argument {argument!r}{inside} is {seen}: {_lower(details['msg'])}", argument)

    def _refused(self, why: str, argument: str = "") -> BadArguments:
        return BadArguments(f"task {self.task!r}: {why}", task=self.task, argument=argument)

    def _undefined(self, error: NameError) -> NameError:
        return NameError(f"task {self.task!r}: its annotations need what is not defined: {error.name}", name=error.name)

    def _adapter(self, given: type, fields: Mapping[str, object]) -> TypeAdapter[Named]:
        try:
            adapter: TypeAdapter[Named] = TypeAdapter(given)
            adapter.rebuild()  # Raises when a model in it waits for a name.
            return adapter
        except PydanticUndefinedAnnotation as error:
            raise self._undefined(error) from error
        except PydanticSchemaGenerationError as error:
            for name, annotation in fields.items():
                _check_annotation(self.task, name, annotation)
            raise TypeError(f"task {self.task!r}: {error}") from error


def is_strict_json(text: bytes) -> bool:
    """Whether *text* has neither NaN nor an infinity, outside its strings."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        json.loads(text, parse_constant=refuse)
    except ValueError:
        return False
    return True


def shortened(value: object) -> str:
    """How an error shows a value."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 1]}…"


def _field(parameter: inspect.Parameter, annotation: object) -> object:
    if parameter.kind is parameter.VAR_POSITIONAL:
        return NotRequired[list[annotation]]  # type: ignore[valid-type]
    if parameter.kind is parameter.VAR_KEYWORD:
        return NotRequired[dict[str, annotation]]  # type: ignore[valid-type]
    return annotation if parameter.default is parameter.empty else NotRequired[annotation]


def _checked(kind: type) -> type:
    return with_config(ConfigDict(extra="forbid", allow_inf_nan=False))(kind)


def _check_annotation(task: str, name: str, annotation: object) -> None:
    try:
        TypeAdapter(_checked(TypedDict("One", {name: annotation})))  # type: ignore[operator]
    except PydanticSchemaGenerationError as error:
        raise TypeError(
            f"task {task!r}: argument {name!r} is annotated with what cannot be checked and written as JSON; "
            "use JSON's types, pydantic models, datetime, UUID, Enum and the like"
        ) from error


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
