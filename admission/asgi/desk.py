"""What one `QoSAdmission` shares between its requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from admission.asgi.body import ByteBudget, Receive, Send
from admission.asgi.options import Options
from admission.asgi.responses import Header, Refusals, admitted_headers
from admission.controller import AdmissionController
from admission.line import DONE, Entry

ASGIApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class Desk:
    """The controller, the options, and what was made of them once."""

    def __init__(self, controller: AdmissionController, options: Options) -> None:
        self.options = options
        self.stall_timeout = options["stall_timeout"]
        self.last_byte = options["release_on"] == "last_byte"
        self.budget = ByteBudget(options["spool_budget"])
        self.refusals = Refusals(
            format=options["refusal_format"],
            contended=options["refusal_status"],
            draining=options["draining_status"],
            retry_after=options["retry_after"],
        )
        self.controller = controller

    @property
    def controller(self) -> AdmissionController:
        """Decides. May be replaced while nothing runs."""
        return self._controller

    @controller.setter
    def controller(self, controller: AdmissionController) -> None:
        self._controller = controller
        self.mark = f"admission.entry.{controller.name}"
        """Key of the scope under which a second middleware of the same pool finds that a slot is held already.

        The context variable would not do: servers may start a pipelined request in the context of the one before it."""
        self.names = [c.name for c in controller.classes]
        self.at_once: list[list[Header]] = [
            admitted_headers(priority=name, position=0, waited=0.0) if self.options["response_headers"] else []
            for name in self.names
        ]
        """Response headers of those that did not wait, by rank."""

    def holds(self, scope: Mapping[str, Any]) -> bool:
        """Whether a middleware further out has taken a slot of this pool for this request."""
        entry = scope.get(self.mark)
        return entry is not None and entry.state is not DONE

    def waited_headers(self, entry: Entry) -> list[Header]:
        """Response headers of one that did."""
        if not self.options["response_headers"]:
            return []
        return admitted_headers(
            priority=self.names[entry.rank],
            position=entry.position,
            waited=entry.granted_at - entry.arrival,
            ticket=self._controller.id_of(entry),
        )
