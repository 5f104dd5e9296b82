"""A tunnel: after 101, bytes of another protocol both ways (WebSocket), uninterpreted."""

from __future__ import annotations

from collections.abc import Callable

from cove.gateway.exchange import Exchange
from cove.gateway.upstream import UpstreamConnection


class Tunnel:
    """Joins a client's connection and an instance's until either ends or the deadline comes."""

    def __init__(
        self, exchange: Exchange, upstream: UpstreamConnection, on_end: Callable[[], None]
    ) -> None:
        self._exchange = exchange
        self._upstream = upstream
        self._on_end = on_end
        self._ended = False

    def open(self) -> None:
        exchange = self._exchange
        exchange.on_gone = self._end
        exchange.on_deadline = self._end
        exchange.on_pause = self._client_pauses
        exchange.stream()
        self._upstream.tunnel(self._from_instance, self._instance_pauses)
        exchange.connection.tunnel(self._upstream.send)

    def _from_instance(self, data: bytes | None) -> None:
        if data is None:
            self._end()
        else:
            self._exchange.write(data)

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
