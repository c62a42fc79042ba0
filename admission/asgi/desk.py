"""What one `QoSAdmission` shares between its requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from admission.asgi.body import ByteBudget, Receive, Send
from admission.asgi.options import Options
from admission.asgi.responses import Header, Refusals, admitted_headers
from admission.controller import AdmissionController
from admission.line import RUNNING, Entry
from admission.permit import controller_of

ASGIApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


MARK: Final = "admission.entry"
"""Key of the scope under which the entry is kept that a request runs on.

The context variable would not do to tell whether a slot is held: servers may start a pipelined request in the
context of the one before it."""


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
        self.use(controller)

    def use(self, controller: AdmissionController) -> None:
        """Let *controller* decide from now on. Only while nothing runs."""
        self.controller = controller
        self.names = [c.name for c in controller.classes]
        self.at_once: list[list[Header]] = [
            admitted_headers(priority=name, position=0, waited=0.0) if self.options["response_headers"] else []
            for name in self.names
        ]
        """Response headers of those that did not wait, by rank."""

    def holds(self, entry: Entry | None) -> bool:
        """Whether *entry*, the mark of a scope, or one further out is a running one of this pool."""
        while entry is not None:
            if entry.state is RUNNING and controller_of(entry).name == self.controller.name:
                return True
            entry = entry.outer
        return False

    def waited_headers(self, entry: Entry) -> list[Header]:
        """Response headers of one that did."""
        if not self.options["response_headers"]:
            return []
        return admitted_headers(
            priority=self.names[entry.rank],
            position=entry.position,
            waited=entry.granted_at - entry.arrival,
            ticket=self.controller.id_of(entry),
        )
