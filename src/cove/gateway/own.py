"""Cove's own paths: health, readiness, metrics, and the control API behind its socket."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from cove.errors import CoveError
from cove.gateway.affinity import Visit
from cove.gateway.destination import Destination
from cove.gateway.exchange import Exchange
from cove.gateway.forward import Forward
from cove.gateway.heads import SentHead
from cove.gateway.replies import simple_reply
from cove.gateway.upstream import Upstream, UpstreamConnection
from cove.metrics import FunctionStats, Metrics

if TYPE_CHECKING:
    from cove.gateway.gateway import Gateway

_API_BODY = 512 * 1024 * 1024
_API_SECONDS = 3600.0


class Own:
    """What is served where no function is. `control` is where /v1 goes."""

    def __init__(self, gateway: Gateway, api: Upstream, metrics: Metrics) -> None:
        self._gateway = gateway
        self._api = api
        self._metrics = metrics
        self.control = Destination(
            "the control API", FunctionStats(), body=_API_BODY, timeout=_API_SECONDS
        )

    def serve(self, exchange: Exchange, host: bytes) -> None:
        """`not_found`, with the nearest function, for anything that is not Cove's."""
        path, policy = exchange.path, self._gateway.policy
        if path == b"/v1" or path.startswith(b"/v1/"):
            way, visit = ControlWay(self.control, exchange), ControlVisit(self._api)
            Forward(self._gateway, exchange, way, visit).start()
        elif path == b"/healthz":
            _say(exchange, 200, b"ok\n")
        elif path == b"/readyz":
            draining = self._gateway.draining
            _say(exchange, 503 if draining else 200, b"draining\n" if draining else b"ready\n")
        elif path == b"/metrics":
            if not policy.loopback and not policy.principal(exchange)[1]:
                raise CoveError("unauthorized", "/metrics needs a project key on this listener")
            _say(exchange, 200, self._metrics.render(), b"text/plain; version=0.0.4")
        else:
            raise self._no_route(path, host)

    def _no_route(self, path: bytes, host: bytes) -> CoveError:
        routes = self._gateway.routes
        name = routes.hosted(host) or (path.split(b"/")[2] if path.startswith(b"/fn/") else b"")
        if not name:
            return CoveError(
                "not_found",
                f"nothing is served at {path.decode('latin-1')}",
                hint="functions are at /fn/NAME/…; `cove list` shows their URLs",
            )
        text = name.decode("latin-1")
        near = difflib.get_close_matches(text, [route.name for route in routes.all()], 1)
        return CoveError(
            "not_found",
            f"there is no function {text}",
            hint=f"did you mean {near[0]}?" if near else "`cove list` shows what is deployed",
        )


class ControlWay:
    """The way of a request to the control API, which authenticates by itself, and keeps a log."""

    prefix = b""
    key = False
    modern = True
    principal = None

    def __init__(self, route: Destination, exchange: Exchange) -> None:
        self.route = route
        self.target = exchange.target
        self.sent = SentHead()


class ControlVisit(Visit):
    """A stay at the control API, which always has room and keeps no sessions."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    @property
    def upstream(self) -> Upstream:
        return self._upstream

    def take(self) -> UpstreamConnection | None:
        return self._upstream.take()


def _say(exchange: Exchange, status: int, body: bytes, kind: bytes = b"text/plain") -> None:
    extra = b"X-Request-Id: " + exchange.id
    keep = exchange.keep_alive
    exchange.answer(
        simple_reply(status, body, keep_alive=keep, content_type=kind, extra=extra),
        keep_alive=keep,
    )
