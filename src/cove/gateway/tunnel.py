"""A tunnel: after 101, bytes of another protocol both ways (WebSocket), uninterpreted."""

from __future__ import annotations

from collections.abc import Callable

from cove.engine.instance import Instance
from cove.gateway.exchange import Exchange
from cove.gateway.frames import INTERNAL_ERROR, Frames, close
from cove.gateway.loss import gone
from cove.gateway.upstream import UpstreamConnection


class Tunnel:
    """Joins a client's connection and an instance's until either ends, or `close`."""

    def __init__(
        self, exchange: Exchange, upstream: UpstreamConnection, on_end: Callable[[], None]
    ) -> None:
        self._exchange = exchange
        self._upstream = upstream
        self._on_end = on_end
        self._on_lost = on_end
        self._shown = Frames()
        self._ended = False

    def open(self, on_lost: Callable[[], None]) -> None:
        """Begin. `on_lost` is called where the instance has left in a way that `lose` can tell."""
        self._on_lost = on_lost
        exchange = self._exchange
        exchange.on_gone = self._end
        exchange.on_pause = self._client_pauses
        exchange.stream()
        self._upstream.tunnel(self._from_instance, self._instance_pauses)
        exchange.connection.tunnel(self._upstream.send)

    def close(self, code: int, reason: str) -> None:
        """End it, saying why where that is possible: between two frames."""
        if not self._ended and self._hears:
            self._exchange.write(close(code, reason))
        self._end()

    async def lose(self, instance: Instance | None) -> None:
        """Tell the client how the instance ended, if it has."""
        why = "the instance hung up"
        if instance is not None:
            await gone(instance)
            why = f"the instance ended: {instance.exit}" if instance.exit is not None else why
        self.close(INTERNAL_ERROR, why)

    @property
    def _hears(self) -> bool:
        return self._shown.between and not self._shown.closed

    def _from_instance(self, data: bytes | None) -> None:
        if data is not None:
            self._shown.feed(data)
            self._exchange.write(data)
        elif self._hears:
            self._on_lost()
        else:
            self._end()

    def _client_pauses(self, paused: bool) -> None:
        if paused:
            self._upstream.pause_reading()
        else:
            self._upstream.resume_reading()

    def _instance_pauses(self, paused: bool) -> None:
        if paused:
            self._exchange.connection.pause()
        else:
            self._exchange.connection.resume()

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._on_end()
        self._upstream.close()
        self._exchange.keep_alive = False
        self._exchange.finish()
