"""A call: an MCP exchange that a coroutine serves, a stream or a bridge. Not the hot path."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import structlog

from cove.errors import CoveError
from cove.gateway.exchange import Exchange
from cove.gateway.routes import Route

if TYPE_CHECKING:
    from cove.gateway.gateway import Gateway

log = structlog.get_logger("cove.gateway")


class Call:
    """An MCP exchange that a coroutine serves: a stream or a bridge, not the hot path."""

    __slots__ = ("by_key", "exchange", "gateway", "prefix", "principal", "route")

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

    def run(
        self, serving: Coroutine[Any, Any, None], *, cancels: bool = True, counts: bool = True
    ) -> None:
        """Serve as a task, cancelled when the client goes. `counts`: nothing else counts it."""
        task = asyncio.create_task(self._serve(serving, counts))
        self.gateway.keep(task)
        if cancels:
            self.exchange.on_gone = lambda: _cancel(task)

    async def _serve(self, serving: Coroutine[Any, Any, None], counts: bool) -> None:
        exchange, status = self.exchange, 200
        try:
            await serving
        except CoveError as error:
            status = error.status
            self.gateway.refuse(exchange, error, rpc=True)
        except (OSError, TimeoutError) as error:
            status = 502
            reason = str(error) or type(error).__name__
            self.gateway.refuse(
                exchange,
                CoveError("bad_gateway", f"{self.route.name} did not answer: {reason}"),
                rpc=True,
            )
        except Exception:
            status = 500
            log.exception("request failed", request_id=exchange.id.decode())
            self.gateway.refuse(
                exchange, CoveError("internal", "Cove failed on this request"), rpc=True
            )
        finally:
            if counts or status >= 400:
                self._count(status)

    def _count(self, status: int) -> None:
        """Streams are counted; how long they were open says nothing of how fast they are."""
        stats, exchange = self.route.stats, self.exchange
        if exchange.is_stream:
            stats.requests[status] = stats.requests.get(status, 0) + 1
        else:
            now = asyncio.get_running_loop().time()
            stats.answered(status, now - exchange.started_at)


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
