"""The load: each client does one thing again and again, and knows what must come of it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import Awaitable
from random import Random
from typing import Any

import httpx2
import websockets
from websockets.asyncio.client import connect

from chaos.server import Server
from chaos.tally import Outcome, Tally

HANGS_AFTER = 30.0
"""Seconds. A start of Cove is in it, and a cold start of a function."""

LEGACY, MODERN = "2025-06-18", "2026-07-28"
_ACCEPT = {"accept": "application/json, text/event-stream"}
_INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {
        "protocolVersion": LEGACY,
        "capabilities": {},
        "clientInfo": {"name": "chaos", "version": "1"},
    },
}


class Client:
    """One task. `done` counts what went well, so that others can wait for the next time."""

    kind = ""

    def __init__(
        self, server: Server, http: httpx2.AsyncClient, tally: Tally, dice: Random
    ) -> None:
        self.server, self.http, self.tally, self.dice = server, http, tally, dice
        self.done = 0
        self._more = asyncio.Event()
        self._last: Outcome = "ok"

    async def run(self) -> None:
        """Again and again, until cancelled."""
        while True:
            await self.turn()
            # Who was not served looks again a little later, as clients do.
            await asyncio.sleep(self.dice.uniform(0.01, 0.05) * (1 if self._last == "ok" else 5))

    async def turn(self) -> None:
        raise NotImplementedError

    async def again(self) -> None:
        """Wait until something that begins from now on has gone well."""
        wanted = self.done + 2  # the next may have begun before
        while self.done < wanted:
            self._more.clear()
            await self._more.wait()

    def well(self, begun: float) -> None:
        self.end("ok", begun)
        self.done += 1
        self._more.set()

    def end(self, outcome: Outcome, begun: float, said: str = "") -> None:
        self._last = outcome
        self.tally.count(self.kind, outcome, begun, time.monotonic(), said)

    def url(self, path: str) -> str:
        return f"{self.server.url}/fn/{path}"

    async def tried(
        self, begun: float, asking: Awaitable[httpx2.Response], *allowed: int
    ) -> httpx2.Response | None:
        """The answer, with status 200 or one of those allowed; else None, and it is counted."""
        try:
            async with asyncio.timeout(HANGS_AFTER):
                answer = await asking
        except (TimeoutError, httpx2.TimeoutException):
            self.end("hung", begun, f"no answer in {HANGS_AFTER:g} s")
        except httpx2.ConnectError as error:
            self.end("refused", begun, str(error))
        except httpx2.HTTPError as error:
            self.end("reset", begun, repr(error))
        else:
            if answer.status_code in (200, *allowed):
                return answer
            self.end(_outcome(answer), begun, f"{answer.status_code} {answer.text[:200]}")
        return None


def _outcome(answer: httpx2.Response) -> Outcome:
    """502 and 503 are an answer where they say in words what the matter is."""
    if answer.status_code not in (502, 503):
        return "wrong"
    try:
        said = answer.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        said = answer.text
    return "unavailable" if said else "wrong"


class Counting(Client):
    """A legacy MCP session with a counter: the same id, the same instance, and on with the count.

    A request that nobody answered may have counted, or not; one that was answered has.
    """

    kind = "legacy session"

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.session = self.who = ""
        self.count = self.unknown = 0
        self.kept = self.lost = 0
        self.ended: list[str] = []

    async def turn(self) -> None:
        if not self.session:
            await self._open()
        elif self.dice.random() < 0.005:
            await self._close()
        elif self.ended and self.dice.random() < 0.02:
            await self._look_at_an_ended_one()
        else:
            await self._count()

    async def _open(self) -> None:
        begun = time.monotonic()
        asking = self.http.post(self.url("counter/mcp"), json=_INITIALIZE, headers=_ACCEPT)
        answer = await self.tried(begun, asking)
        if answer is not None:
            self.session, self.who = answer.headers["mcp-session-id"], ""
            self.count = self.unknown = 0
            self.well(begun)

    async def _count(self) -> None:
        begun = time.monotonic()
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "count"}}
        asking = self.http.post(self.url("counter/mcp"), json=call, headers=self._headers())
        answer = await self.tried(begun, asking, 404)
        if answer is None:
            self.unknown += 1
        elif answer.status_code == 404:
            self.lost += 1
            self.end("wrong", begun, f"session {self.session} is lost: {answer.text[:200]}")
            self.session = ""
        else:
            who, count = answer.json()["result"]["content"][0]["text"].split()
            right = self.count < int(count) <= self.count + 1 + self.unknown
            if not right or who != (self.who or who):
                self.end(
                    "wrong",
                    begun,
                    f"session {self.session} of {self.who} had counted to {self.count}, "
                    f"{self.unknown} unanswered, and {who} says {count}",
                )
            else:
                self.well(begun)
            self.who, self.count, self.unknown = who, int(count), 0

    async def _close(self) -> None:
        begun = time.monotonic()
        asking = self.http.delete(self.url("counter/mcp"), headers=self._headers())
        answer = await self.tried(begun, asking)
        if answer is not None:
            self.ended = [*self.ended[-9:], self.session]
            self.well(begun)
        self.session = ""  # where nobody answered it has ended, or not: that is not asked

    async def _look_at_an_ended_one(self) -> None:
        begun = time.monotonic()
        ended = self.dice.choice(self.ended)
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "count"}}
        asking = self.http.post(self.url("counter/mcp"), json=call, headers=self._headers(ended))
        answer = await self.tried(begun, asking, 404)
        if answer is not None and answer.status_code == 404:
            self.well(begun)
        elif answer is not None:
            self.end("wrong", begun, f"session {ended} had ended, and goes on")

    def _headers(self, session: str = "") -> dict[str, str]:
        named = {"mcp-session-id": session or self.session, "mcp-protocol-version": LEGACY}
        return {**_ACCEPT, **named}


class Listening(Counting):
    """A legacy session that holds its event stream open: numbered events, from one instance."""

    kind = "held stream"

    async def turn(self) -> None:
        if not self.session:
            await self._open()
            return
        begun, first = time.monotonic(), True
        try:
            async with asyncio.timeout(None) as patience:
                url, headers = self.url("counter/mcp"), self._headers()
                patience.reschedule(time.monotonic() + HANGS_AFTER)
                async with self.http.stream("GET", url, headers=headers) as stream:
                    if stream.status_code != 200:
                        await stream.aread()
                        said = f"{stream.status_code} {stream.text[:200]}"
                        self.end(_outcome(stream), begun, said)
                        if stream.status_code == 404:
                            self.lost += 1
                            self.session = ""
                        return
                    number = -1
                    async for line in stream.aiter_lines():
                        patience.reschedule(time.monotonic() + HANGS_AFTER)
                        if line.startswith("data:"):
                            number = self._heard(line, number)
                            if first:
                                first = False
                                self.well(begun)
                            else:
                                self.done += 1
                                self._more.set()
        except TimeoutError:
            self.end("hung", begun, f"nothing was heard for {HANGS_AFTER:g} s")
        except httpx2.ConnectError as error:
            self.end("refused", begun, str(error))
        except httpx2.HTTPError as error:
            self.end("reset", begun, repr(error))
        else:
            self.end("reset", begun, "the stream ended")

    def _heard(self, line: str, last: int) -> int:
        params = json.loads(line.removeprefix("data:"))["params"]
        who, number = params["who"], int(params["number"])
        if who != (self.who or who) or number != last + 1:
            self.tally.violation(
                f"session {self.session} of {self.who} heard {who} say {number} after {last}"
            )
        self.who = who
        return number


class Modern(Client):
    """Calls of the modern era, each for itself."""

    kind = "modern call"

    async def turn(self) -> None:
        begun, word = time.monotonic(), f"{self.dice.random()}"
        meta = {
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientCapabilities": {},
            "io.modelcontextprotocol/clientInfo": {"name": "chaos", "version": "1"},
        }
        params = {"name": "echo", "arguments": {"text": word}, "_meta": meta}
        call = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params}
        headers = {
            **_ACCEPT,
            "mcp-protocol-version": MODERN,
            "mcp-method": "tools/call",
            "mcp-name": "echo",
        }
        asking = self.http.post(self.url("modern/mcp"), json=call, headers=headers)
        answer = await self.tried(begun, asking)
        if answer is None:
            return
        if f'"{word}"' in answer.text and '"id":7' in answer.text.replace(" ", ""):
            self.well(begun)
        else:
            self.end("wrong", begun, answer.text[:200])


class Streaming(Client):
    """HTTP+SSE: a session lives in its stream and ends with it; every answer comes on it."""

    kind = "sse call"

    async def turn(self) -> None:
        begun = time.monotonic()
        try:
            async with self.http.stream("GET", self.url("events/sse")) as stream:
                if stream.status_code != 200:
                    await stream.aread()
                    self.end(_outcome(stream), begun, f"{stream.status_code} {stream.text[:200]}")
                    return
                lines = stream.aiter_lines()
                endpoint = self.server.url + await _data(lines)
                for ident in range(self.dice.randint(5, 60)):
                    begun = time.monotonic()
                    if not await self._call(endpoint, lines, ident, begun):
                        return
                    await asyncio.sleep(self.dice.uniform(0.01, 0.05))
        except (TimeoutError, httpx2.TimeoutException):
            self.end("hung", begun, f"no answer in {HANGS_AFTER:g} s")
        except httpx2.ConnectError as error:
            self.end("refused", begun, str(error))
        except (httpx2.HTTPError, StopAsyncIteration) as error:
            self.end("reset", begun, repr(error))

    async def _call(self, endpoint: str, lines: Any, ident: int, begun: float) -> bool:
        method = "initialize" if ident == 0 else "tools/call"
        params = {"name": "path"} if ident else _INITIALIZE["params"]
        message = {"jsonrpc": "2.0", "id": ident, "method": method, "params": params}
        posted = await self.tried(begun, self.http.post(endpoint, json=message), 202)
        if posted is None:
            return False
        answer = json.loads(await _data(lines))
        if answer.get("id") != ident or "result" not in answer:
            self.end("wrong", begun, f"asked {ident}, and {answer} came")
            return False
        self.well(begun)
        return True


async def _data(lines: Any) -> str:
    """The data of the next event. `StopAsyncIteration` at the stream's end."""
    async with asyncio.timeout(HANGS_AFTER):
        while not (line := await anext(lines)).startswith("data:"):
            pass
    return str(line.removeprefix("data:").strip())


class Chatting(Client):
    """A WebSocket that says everything again."""

    kind = "websocket"

    async def turn(self) -> None:
        begun = time.monotonic()
        url = self.url("web/chat").replace("http://", "ws://")
        try:
            async with asyncio.timeout(HANGS_AFTER) as patience, connect(url, proxy=None) as socket:
                for number in range(self.dice.randint(5, 60)):
                    begun = time.monotonic()
                    patience.reschedule(begun + HANGS_AFTER)
                    word = f"{number} " + "x" * self.dice.choice((0, 10, 500, 20_000))
                    await socket.send(word)
                    if await socket.recv() != word:
                        self.end("wrong", begun, "another word came back")
                        return
                    self.well(begun)
                    await asyncio.sleep(self.dice.uniform(0.01, 0.05))
        except TimeoutError:
            self.end("hung", begun, f"no answer in {HANGS_AFTER:g} s")
        except ConnectionRefusedError as error:
            self.end("refused", begun, str(error))
        except websockets.InvalidStatus as error:
            status = error.response.status_code
            self.end("unavailable" if status in (502, 503) else "wrong", begun, str(error))
        except (OSError, EOFError, websockets.WebSocketException) as error:
            self.end("reset", begun, repr(error))


class Browsing(Client):
    """Plain pages, and bodies whose digest must come back."""

    kind = "web request"

    async def turn(self) -> None:
        begun = time.monotonic()
        if self.dice.random() < 0.5:
            page = f"/{self.dice.randint(0, 10**9)}"
            answer = await self.tried(begun, self.http.get(self.url("web") + page))
            wanted = page
        else:
            body = self.dice.randbytes(self.dice.choice((0, 100, 60_000, 300_000)))
            answer = await self.tried(begun, self.http.post(self.url("web/"), content=body))
            wanted = hashlib.sha256(body).hexdigest()
        if answer is None:
            return
        if answer.text.endswith(wanted):
            self.well(begun)
        else:
            self.end("wrong", begun, answer.text[:200])


@contextlib.asynccontextmanager
async def browser() -> Any:
    """One HTTP client for all: as many connections as they like, and bounds of our own."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=40)
    timeout = httpx2.Timeout(HANGS_AFTER)
    async with httpx2.AsyncClient(limits=limits, timeout=timeout, trust_env=False) as http:
        yield http
