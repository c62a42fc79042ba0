"""What a name on the command line means: `module:attribute`, imported from the current directory."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable


class NotFound(Exception):
    """There is no such thing; the message names what was tried."""


def imported(name: str, what: str, example: str, others: Callable[[object], str]) -> object:
    """What *name* means: `module:attribute`, `package.module:holder.attribute`.

    Args:
        what: What it should be, for errors: "app".
        example: How such a name looks.
        others: Says what a module has that may have been meant; empty if nothing.

    Raises:
        NotFound: There is no such module, or no such name in it.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        module = example.partition(":")[2]
        raise NotFound(f"{name!r} names no {what}: write it as module:{module}, such as {example}")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise  # The module is there and needs another one that is not: its own traceback says it best.
        raise NotFound(
            f"there is no module {error.name!r}: tried to import {module_name!r} from {os.getcwd()} and the installed "
            "packages"
        ) from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            has = others(found)
            raise NotFound(f"module {module_name!r} has no {attribute!r}" + (f"; it has {has}" if has else ""))
        found = getattr(found, part)
    return found
