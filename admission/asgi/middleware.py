"""`QoSAdmission`: decides which request may start now, which waits, and which is turned away."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from inspect import isawaitable
from itertools import chain
from typing import Any, Final, Unpack, cast

from admission.asgi.body import Message, Receive, Send, replaying
from admission.asgi.classify import (
    REMEMBERED,
    Classifier,
    RequestCounts,
    Scope,
    normalised,
    route_path,
)
from admission.asgi.desk import MARK, ASGIApp, Desk
from admission.asgi.options import Options, PoolOptions, SharedPoolOptions, pool_options, resolve, shared_pool
from admission.asgi.serving import Exchange, serve
from admission.asgi.shutdown import SignalHook, server_connection_limit
from admission.asgi.status import StatusPages
from admission.asgi.verdict import PathRule, Verdict
from admission.asgi.visit import Visit
from admission.asgi.websocket import serve_websocket, serve_websocket_in_shadow
from admission.compilation import mypyc_attr
from admission.controller import AdmissionController
from admission.permit import hold_for_task
from admission.types import BackpressureMode

_log = logging.getLogger(__name__)

_EXEMPT: Final = PathRule()
_STATUS: Final = PathRule()

_REMEMBERED_PATH = 256
"""Characters of the longest path whose rule is kept."""


@mypyc_attr(allow_interpreted_subclasses=True)
class QoSAdmission:
    """An ASGI middleware that lets in as many requests as the pool bears, and makes the others wait or turns them away.

        app.add_middleware(QoSAdmission, max_concurrency=8, max_queue_size=100, mode="block")

    Without any argument it configures itself from `ADMISSION_*` in the environment and the file in `ADMISSION_CONFIG`,
    which is what `vllm serve --middleware admission.QoSAdmission` needs.

    While slots are free a request passes through without a task, a timer or a lock. It is no rate limiter: it
    counts what runs at once, not what came in a minute. A request keeps its slot until the app has returned, so
    streams and background tasks count to their end. Mounted inside another app it works without `lifespan`; twice
    in one app, with pools of one name, it takes one slot. With `redis=` all processes that name the same server,
    namespace and pool share one limit and one line.

    Args:
        app: The ASGI app.
        controller: A controller of your own, to be shared with an executor or other apps; options of the pool
            are then its, not the middleware's, and it is not drained when this app ends (on SIGTERM it is).
            Of `mode` only "shadow" then has a meaning.
        options: See `Options`.

    Raises:
        TypeError: Unknown option.
        ValueError: An option is outside its range; the message names option, value and range.
    """

    def __init__(
        self, app: ASGIApp, *, controller: AdmissionController | None = None, **options: Unpack[Options]
    ) -> None:
        self._owned = controller is None
        if controller is None and not options:
            # The composition root stands above this module; only here does anything look up to it.
            from admission.config import middleware_options

            configured = middleware_options()
            controller = cast("AdmissionController | None", configured.pop("controller", None))
            options = cast(Options, configured)
        if controller is not None:
            _refuse_pool_options(options)
        self.app = app
        self._options = resolved = resolve(options)
        self._desk = desk = Desk(controller or _new_controller(resolved), resolved)
        self._classifier = _classifier(desk.controller, resolved)
        self._relevant = self._classifier.relevant
        self._status = StatusPages(
            lambda: self.controller,
            self.counts,
            path=resolved["status_path"],
            token=resolved["status_token"],
            loopback=resolved["status_loopback"],
            mode=resolved["mode"],
        )
        self._exempt_paths = frozenset(resolved["exempt_paths"])
        self._exempt_methods = frozenset(method.upper() for method in resolved["exempt_methods"])
        self._own_classify = resolved["classify"]
        self._rules: dict[str, PathRule] = {}
        """What a path means, as far as seen: one look-up for exempt paths, our own pages and path rules."""
        # Modes in which the app always runs with something beside it.
        self._always_visit = resolved["mode"] == "shadow" or resolved["cancel_on_disconnect"]
        self._watchful = self._always_visit or self._own_classify is not None or "GET" in self._exempt_methods
        """Even a request like many before needs a closer look."""
        self._special_methods = self._exempt_methods | {"HEAD"}
        self._hook = SignalHook(lambda: self.controller.start_draining())
        self._begun = False

    @property
    def controller(self) -> AdmissionController:
        """Who decides."""
        return self._desk.controller

    @property
    def counts(self) -> RequestCounts:
        """What was noticed about requests: unknown classes, unknown keys, retries …"""
        return self._classifier.counts

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._serve_other(scope, receive, send)
            return
        if not self._begun:
            self._begin(receive)
        path: str = route_path(scope) if scope.get("root_path") else scope["path"]
        rule = self._rules.get(path) or self._rule(path)
        # One pass over the raw headers: names and values of those that decide something, end to end.
        fields: tuple[bytes, ...] = ()
        relevant = self._relevant
        for field in scope["headers"]:
            if field[0] in relevant:
                fields += field
        verdict = rule.known.get(fields)
        if verdict is None or not verdict.plain or self._watchful or MARK in scope:
            await self._look_closer(scope, receive, send, path, rule, fields)
            return
        method = scope["method"]
        first: Message | None = None
        if method != "GET":
            if method in self._special_methods:
                await self._look_closer(scope, receive, send, path, rule, fields)
                return
            # Most bodies are there in one piece; who has to wait for one waits without a slot.
            first = await receive()
            if first["type"] == "http.disconnect":
                return
            if first.get("more_body"):
                await Visit(self._desk, self.app, scope, receive, send, verdict, first).run()
                return
        # A request like many before, in one piece. From here on it is `serve`, spelt out.
        desk = self._desk
        controller = desk.controller
        slots, cost = verdict.slots, verdict.cost
        entry = controller.start_at(
            controller.now(), verdict.rank, verdict.tenant, slots, slots if cost is None else cost
        )
        if entry is None:
            await Visit(desk, self.app, scope, receive, send, verdict, first).run()
            return
        if first is not None:
            receive = replaying(first, receive)
        exchange = Exchange()
        exchange.desk = desk
        exchange.raw_send = send
        exchange.entry = entry
        exchange.headers = desk.at_once[entry.rank]
        exchange.status = 0
        exchange.first_byte_at = None
        entry.outer = None
        scope[MARK] = entry
        hold_for_task(entry)
        failure: BaseException | None = None
        try:
            try:
                await self.app(scope, receive, exchange.send)
            except BaseException as error:
                failure = error
            # Not inside `except`: compiled by mypyc, that shows the error to whoever runs while this waits.
            if failure is not None and not await exchange.answered(failure, scope):
                raise failure
        finally:
            failure = None  # Its traceback holds this frame.
            if exchange.status != 200 or not controller.finish_at(controller.now(), entry):
                exchange.end()

    async def _look_closer(
        self,
        scope: MutableMapping[str, Any],
        receive: Receive,
        send: Send,
        path: str,
        rule: PathRule,
        fields: tuple[bytes, ...],
    ) -> None:
        """A request of a new kind, one with a wish of its own, or one about which nothing is to be decided."""
        desk = self._desk
        method: str = scope["method"]
        if rule is _STATUS:
            await self._status(scope, receive, send, path)
            return
        if rule is _EXEMPT or method in self._exempt_methods or (MARK in scope and desk.holds(scope[MARK])):
            await self.app(scope, receive, send)
            return
        verdict = await self._verdict(rule, fields, scope)
        visit = self._always_visit
        first: Message | None = None
        if method == "HEAD" or verdict.expects_continue:
            visit = True
        elif method != "GET":
            # Most bodies are there in one piece; who has to wait for one waits without a slot.
            first = await receive()
            if first["type"] == "http.disconnect":
                return
            visit = visit or first.get("more_body", False)
        if not visit:
            entry = desk.controller.try_start(verdict.rank, verdict.tenant, verdict.slots, verdict.cost)
            if entry is not None:
                if first is not None:
                    receive = replaying(first, receive)
                await serve(desk, self.app, scope, receive, send, entry, desk.at_once[verdict.rank])
                return
        await Visit(desk, self.app, scope, receive, send, verdict, first).run()

    # ------------------------------------------------------------------ who asks

    async def _verdict(self, rule: PathRule, fields: tuple[bytes, ...], scope: Scope) -> Verdict:
        """What the rules say, then what your own callable does."""
        verdict = rule.known.get(fields) or self._classifier.verdict(rule, fields, scope)
        if verdict.retry:
            self.counts.client_retry += 1
        if self._own_classify is None:
            return verdict
        try:
            said = self._own_classify(scope)
            if isawaitable(said):
                said = await said
        except Exception:
            self._classifier.failed(scope)
            return verdict
        return verdict if said is None else self._classifier.apply(said, verdict)

    def _rule(self, path: str) -> PathRule:
        rule = self._classifier.path_rule(normalised(path))
        if path in self._exempt_paths:
            rule = _EXEMPT
        elif self._status.owns(path):
            rule = _STATUS
        if len(self._rules) >= REMEMBERED:
            self._rules.clear()
        if len(path) <= _REMEMBERED_PATH:
            self._rules[path] = rule
        return rule

    # ------------------------------------------------------------------ other scopes

    async def _serve_other(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._serve_lifespan(scope, receive, send)
        elif scope["type"] == "websocket" and self._options["websockets"]:
            await self._serve_websocket(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _serve_websocket(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if not self._begun:
            self._begin(receive)
        path = route_path(scope)
        rule = self._rules.get(path) or self._rule(path)
        if rule is _EXEMPT or rule is _STATUS or self._desk.holds(scope.get(MARK)):
            await self.app(scope, receive, send)
            return
        fields = tuple(chain.from_iterable(field for field in scope["headers"] if field[0] in self._relevant))
        verdict = await self._verdict(rule, fields, scope)
        if self._options["mode"] == "shadow":
            await serve_websocket_in_shadow(self._desk, self.app, scope, receive, send, verdict)
        else:
            await serve_websocket(self._desk, self.app, scope, receive, send, verdict)

    async def _serve_lifespan(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        async def overheard() -> Message:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                self._close()
                if self._owned:
                    await self.controller.aclose()
            elif self._owned:
                # A shared pool counts this process from its start: its share in an outage goes by how many there are.
                self.controller.bind()
                await self.controller.refresh()
            return message

        await self.app(scope, overheard, send)

    # ------------------------------------------------------------------ from the first request to the last

    def _begin(self, receive: Receive) -> None:
        """On the first request: mounted apps are told of no start."""
        self._begun = True
        if self._owned:
            self.controller.reopen()  # Served again after its lifespan had ended, as tests do.
        self.controller.bind()
        if self._options["drain_on_signal"]:
            self._hook.install()
        _warn_of_connection_limit(receive, self.controller)

    def _close(self) -> None:
        if self._owned:
            self.controller.start_draining()
        self._hook.uninstall()
        self._begun = False


def _new_controller(options: Options) -> AdmissionController:
    mode = BackpressureMode.BLOCK if options["mode"] == "block" else BackpressureMode.REJECT
    return AdmissionController(backpressure_mode=mode, backend=shared_pool(options), **pool_options(options))


def _classifier(controller: AdmissionController, options: Options) -> Classifier:
    return Classifier(
        controller,
        trust_headers=options["trust_headers"],
        priority_headers=options["priority_headers"],
        key_headers=options["key_headers"],
        tenants=options["tenants"],
        tiers=options["tiers"],
        paths=options["paths"],
        anonymous_priority=options["anonymous_priority"],
        numeric_priorities=options["numeric_priorities"],
        tenant_by_address=options["tenant_by_address"],
        trusted_proxies=options["trusted_proxies"],
    )


def _refuse_pool_options(options: Options) -> None:
    for option in (*PoolOptions.__annotations__, *SharedPoolOptions.__annotations__):
        if option in options:
            raise ValueError(f"{option} was given along with controller: it is the controller's, and set there")


def _warn_of_connection_limit(receive: Receive, controller: AdmissionController) -> None:
    limit = server_connection_limit(receive)
    pool = controller.snapshot()
    if limit is not None and limit < pool.limit + pool.max_queue_size:
        _log.warning(
            "--limit-concurrency is %d, which counts idle connections as well; pool %r has room for %d running and %d "
            "waiting requests: beyond the former the server answers 503 by itself, health checks included",
            limit,
            pool.pool,
            pool.limit,
            pool.max_queue_size,
        )
