"""A version's first look: what its program speaks, asked of the program itself.

Four questions, in order: an `initialize` and a `server/discover` by POST; where neither is
understood, a GET for an event stream with an endpoint event. What answers none is no MCP
server, and the deploy says what was seen instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import json

from cove.engine.instance import Instance
from cove.errors import CoveError
from cove.gateway.eventstream import parsed
from cove.gateway.fetch import Response, fetch, plain_head
from cove.gateway.head import Headers
from cove.gateway.sse_backend import resolve
from cove.gateway.upstream import Upstream
from cove.mcp import messages
from cove.mcp.classify import LATEST_HANDSHAKE_VERSION, MODERN_VERSION
from cove.model import Facts, FunctionSpec

_ANSWER_BYTES = 8 * 1024 * 1024
_ACCEPT = (b"accept", b"application/json, text/event-stream")
_JSON = (b"content-type", b"application/json")
_CLIENT = {"name": "cove", "version": "1"}


async def look(instance: Instance, spec: FunctionSpec) -> Facts:
    """The facts of a started instance. `deploy_failed` where it speaks no MCP."""
    if spec.kind != "mcp":
        return Facts(transport="http", path=spec.path or "/")
    assert instance.running is not None
    upstream = Upstream(instance.running.connect)
    try:
        async with asyncio.timeout(spec.limits.startup):
            return await _ask(upstream, spec)
    except TimeoutError:
        raise CoveError(
            "deploy_failed",
            f"{spec.name} opened its port but did not answer within {spec.limits.startup:g} s",
            hint="raise limits.startup in cove.toml if it needs longer",
        ) from None
    except OSError as error:
        raise CoveError(
            "deploy_failed", f"{spec.name} did not answer its first request: {error}"
        ) from error
    finally:
        upstream.close()


async def _ask(upstream: Upstream, spec: FunctionSpec) -> Facts:
    seen: list[str] = []
    asker = _Asker(upstream, spec.port, seen)
    if spec.transport in (None, "http"):
        path = await asker.settled((spec.path or "/mcp").encode())
        stateful = await asker.initialize(path)
        modern = await asker.discover(path)
        if stateful is not None or modern:
            return Facts("http", path.decode(), modern, stateful is not None, bool(stateful))
        if asker.guarded:  # it lets only its own callers in: they will tell which era they speak
            return Facts("http", path.decode(), modern=True, legacy=True, stateful=True)
    if spec.transport in (None, "sse"):
        events = spec.path or "/sse"
        if await asker.has_endpoint(events.encode()):
            return Facts("sse", events)
    raise CoveError(
        "deploy_failed",
        f"{spec.name} runs but speaks no MCP: {'; '.join(seen)}",
        hint='say where it does with transport = "http" or "sse" and path in cove.toml, '
        'or kind = "web" if it is no MCP server',
    )


class _Asker:
    """The questions, put to one instance. `seen` keeps what the unhelpful answers were."""

    def __init__(self, upstream: Upstream, port: int, seen: list[str]) -> None:
        self._upstream = upstream
        self._port = port
        self._seen = seen
        self.guarded = False

    async def settled(self, path: bytes) -> bytes:
        """Where a POST to `path` is redirected to on the same server, else `path`."""
        body = b"{}"
        head = self._head(b"POST", path, [_ACCEPT, _JSON], len(body))
        async with fetch(self._upstream, head, body) as response:
            location = response.get(b"location")
            if response.status in (307, 308) and location:
                return resolve(path, location)
        return path

    def _head(
        self, method: bytes, path: bytes, headers: Headers, length: int | None = None
    ) -> bytes:
        return plain_head(method, path, headers, port=self._port, length=length)

    async def initialize(self, path: bytes) -> bool | None:
        """Whether initialize hands out a session id; None where it is not understood."""
        params = {
            "protocolVersion": LATEST_HANDSHAKE_VERSION.decode(),
            "capabilities": {},
            "clientInfo": _CLIENT,
        }
        body = messages.dump({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params})
        head = self._head(b"POST", path, [_ACCEPT, _JSON], len(body))
        async with fetch(self._upstream, head, body) as response:
            answer = await _answer(response)
            session = response.get(b"mcp-session-id")
            if answer is None or "result" not in answer:
                self.guarded = response.status in (401, 403)
                self._seen.append(f"POST {path.decode()} answered {response.status}")
                return None
        if session:
            await self._forget(path, session)
        return bool(session)

    async def _forget(self, path: bytes, session: bytes) -> None:
        """Leave no session of the probe's behind."""
        headers: Headers = [
            (b"mcp-session-id", session),
            (b"mcp-protocol-version", LATEST_HANDSHAKE_VERSION),
        ]
        with contextlib.suppress(OSError):
            async with fetch(self._upstream, self._head(b"DELETE", path, headers)) as response:
                await response.read(_ANSWER_BYTES)

    async def discover(self, path: bytes) -> bool:
        """Whether the modern era is spoken (MCP 2026-07-28, server/discover)."""
        version = MODERN_VERSION.decode()
        meta = {
            "io.modelcontextprotocol/protocolVersion": version,
            "io.modelcontextprotocol/clientCapabilities": {},
            "io.modelcontextprotocol/clientInfo": _CLIENT,
        }
        body = messages.dump(
            {"jsonrpc": "2.0", "id": 0, "method": "server/discover", "params": {"_meta": meta}}
        )
        headers: Headers = [
            _ACCEPT,
            _JSON,
            (b"mcp-protocol-version", MODERN_VERSION),
            (b"mcp-method", b"server/discover"),
        ]
        async with fetch(
            self._upstream, self._head(b"POST", path, headers, len(body)), body
        ) as response:
            answer = await _answer(response)
        result = answer.get("result") if answer is not None else None
        return isinstance(result, dict) and version in result.get("supportedVersions", [version])

    async def has_endpoint(self, path: bytes) -> bool:
        head = self._head(b"GET", path, [(b"accept", b"text/event-stream")])
        async with fetch(self._upstream, head) as response:
            if response.status == 200 and response.is_stream:
                async for event in parsed(response):
                    if event.event == b"endpoint":
                        return True
            self._seen.append(
                f"GET {path.decode()} answered {response.status} without an endpoint event"
            )
        return False


async def _answer(response: Response) -> dict[str, object] | None:
    """The JSON-RPC answer in a response, as JSON or as the first answering event."""
    if response.is_stream:
        async for event in parsed(response):
            if event.data and (answer := _decode(event.data)) and "method" not in answer:
                return answer
        return None
    return _decode(await response.read(_ANSWER_BYTES))


def _decode(data: bytes) -> dict[str, object] | None:
    try:
        value = json.loads(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) and value.get("jsonrpc") == "2.0" else None
