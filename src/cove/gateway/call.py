"""A call: an MCP exchange that a coroutine serves, a stream or a bridge. Not the hot path."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import structlog

from cove.engine.instance import Instance
from cove.engine.sessions import Session
from cove.errors import CoveError
from cove.gateway.affinity import stopping
from cove.gateway.destination import too_large
from cove.gateway.exchange import SMALL_BODY, Exchange
from cove.gateway.loss import gone, lost
from cove.gateway.replies import simple_reply
from cove.gateway.routes import Route

if TYPE_CHECKING:
    from cove.gateway.gateway import Gateway

log = structlog.get_logger("cove.gateway")


class Call:
    """An MCP exchange that a coroutine serves: a stream or a bridge, not the hot path.

    `status` is what it was answered, `session` and `instance` where it was served, as far as
    that is known. `handed_on`: somebody else counts it.
    """

    __slots__ = (
        "_asked",
        "by_key",
        "exchange",
        "gateway",
        "handed_on",
        "instance",
        "prefix",
        "principal",
        "route",
        "session",
        "status",
    )

    def __init__(
        self,
        gateway: Gateway,
        exchange: Exchange,
        route: Route,
        principal: str,
        prefix: bytes,
        by_key: bool,
    ) -> None:
        self.gateway = gateway
        self.exchange = exchange
        self.route = route
        self.principal = principal
        self.prefix = prefix
        self.by_key = by_key
        self.status = 200
        self.session: Session | None = None
        self.instance: Instance | None = None
        self.handed_on = False
        self._asked = b""

    async def read(self) -> bytes:
        """The request's body, whole. `too_large`; `ConnectionError` where the client leaves."""
        body = await self.exchange.read_body(self.route.body)
        if body is None:
            raise too_large(self.route)
        if len(body) <= SMALL_BODY:
            self._asked = body
        return body

    def reply(self, status: int, body: bytes, kind: bytes = b"text/plain") -> None:
        """Answer with a whole reply."""
        self.status = status
        extra = b"X-Request-Id: " + self.exchange.id
        self.exchange.write(simple_reply(status, body, content_type=kind, extra=extra))
        self.exchange.finish()

    def run(self, serving: Coroutine[Any, Any, None], *, cancels: bool = True) -> None:
        """Serve as a task, cancelled when the client goes."""
        task = asyncio.create_task(self._serve(serving))
        self.gateway.keep(task)
        task.add_done_callback(lambda task: self._over(serving))
        if cancels:
            self.exchange.on_gone = lambda: _cancel(task)

    async def _serve(self, serving: Coroutine[Any, Any, None]) -> None:
        try:
            await serving
        except CoveError as error:
            self._refuse(error)
        except (OSError, TimeoutError) as error:
            if self.instance is not None and not self.exchange.gone:
                await gone(self.instance)
            self._refuse(lost(self.route.name, self.instance, str(error) or type(error).__name__))
        except asyncio.CancelledError:
            if self.gateway.closing:
                self._refuse(stopping())
            raise
        except Exception:
            log.exception("request failed", request_id=self.exchange.id.decode())
            self._refuse(CoveError("internal", "Cove failed on this request"))

    def _refuse(self, error: CoveError) -> None:
        if not self.exchange.finished:
            self.status = error.status
            self.gateway.refuse(self.exchange, error, rpc=True, asked=self._asked)

    def _over(self, serving: Coroutine[Any, Any, None]) -> None:
        serving.close()  # a task that was cancelled at once has not begun it
        if not self.handed_on:
            self.gateway.served(self)


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
