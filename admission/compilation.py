"""A mark for the compiled build: `@mypyc_attr(allow_interpreted_subclasses=True)` on classes that users may subclass.

mypyc knows the mark by its origin and takes it away; interpreted classes are always open, so here it does nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr as mypyc_attr
else:

    def mypyc_attr(**_attributes):
        """Leave the class as it is."""
        return lambda marked: marked
