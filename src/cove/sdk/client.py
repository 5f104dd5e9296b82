"""The control API as a synchronous client, on the standard library's http.client."""

from __future__ import annotations

import http.client
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlencode, urlsplit

from cove.errors import CoveError
from cove.sdk.archive import fallback_name, left_beside, pack
from cove.sdk.locate import Location, locate

Json = dict[str, Any]
TIMEOUT = 60.0
LINE = 16 * 1024**2


class CoveClient:
    """Speaks to one server. `timeout` is the seconds of silence that count as lost."""

    def __init__(self, url: str, key: str | None, *, timeout: float = TIMEOUT) -> None:
        self.url = url.rstrip("/")
        self._key = key
        self._timeout = timeout
        parts = urlsplit(self.url)
        try:
            self._host, self._port = parts.hostname or "", parts.port
        except ValueError:
            self._host, self._port = "", None
        self._prefix = parts.path
        self._tls = parts.scheme == "https"
        if parts.scheme not in ("http", "https") or not self._host:
            raise CoveError(
                "bad_request",
                f"{url!r} is no server's URL",
                hint="it looks like http://127.0.0.1:7070",
            )

    @classmethod
    def found(cls, url: str | None = None, data: str | Path | None = None) -> CoveClient:
        """The client for the server that options, environment and data folder mean."""
        return cls.at(locate(url, data))

    @classmethod
    def at(cls, location: Location) -> CoveClient:
        return cls(location.url, location.key)

    def __repr__(self) -> str:
        return f"<CoveClient {self.url}>"

    def functions(self) -> list[Json]:
        """Summaries of all functions, by name."""
        return list(self._call("GET", "/v1/functions")["functions"])

    def describe(self, name: str) -> Json:
        """One function, whole. `not_found` if there is none."""
        return self._call("GET", f"/v1/functions/{quote(name, safe='')}")

    def remove(self, name: str) -> None:
        """Remove a function. `not_found` if there is none."""
        self._call("DELETE", f"/v1/functions/{quote(name, safe='')}")

    def versions(self, name: str) -> list[Json]:
        """A function's versions, newest first. `not_found` if there is no function."""
        return list(self._call("GET", f"/v1/functions/{quote(name, safe='')}/versions")["versions"])

    def rollback(self, name: str, version: int | None = None) -> Json:
        """Let a version go live again; without one, the newest below the live one that works."""
        target = f"/v1/functions/{quote(name, safe='')}/rollback"
        return self._call("POST", target, {} if version is None else {"version": version})

    def secrets(self) -> list[Json]:
        """The secrets that are set, by name, without their values."""
        return list(self._call("GET", "/v1/secrets")["secrets"])

    def set_secret(self, name: str, value: str) -> Json:
        """Set a secret, or set it anew. Instances that start from then on have it."""
        return self._call("PUT", f"/v1/secrets/{quote(name, safe='')}", {"value": value})

    def remove_secret(self, name: str) -> None:
        """Remove a secret. `not_found` if there is none, `conflict` while a function names it."""
        self._call("DELETE", f"/v1/secrets/{quote(name, safe='')}")

    def sessions(self, name: str | None = None) -> list[Json]:
        """Running sessions, of all functions or of one."""
        query = f"?{urlencode({'function': name})}" if name else ""
        return list(self._call("GET", f"/v1/sessions{query}")["sessions"])

    def logs(
        self,
        name: str,
        *,
        since: str = "",
        tail: int | None = None,
        follow: bool = False,
        stream: str = "",
        instance: str = "",
        session: str = "",
        request: str = "",
    ) -> Iterator[Json]:
        """A function's log, oldest record first. `not_found` if there is no function.

        `since` is RFC 3339 or a duration before now, `tail` how many of the last. `follow`: then
        what comes, until the function is removed or the server stops.
        """
        only = {"stream": stream, "instance": instance, "session": session, "request": request}
        target = f"/v1/functions/{quote(name, safe='')}/logs"
        return self._records(target, only | {"since": since}, tail, follow)

    def events(
        self,
        name: str | None = None,
        *,
        since: str = "",
        tail: int | None = None,
        follow: bool = False,
    ) -> Iterator[Json]:
        """What happened, to all functions or to one that is or was, likewise."""
        return self._records("/v1/events", {"function": name or "", "since": since}, tail, follow)

    def _records(
        self, target: str, given: Mapping[str, str], tail: int | None, follow: bool
    ) -> Iterator[Json]:
        query = {key: value for key, value in given.items() if value}
        query |= {"tail": str(tail)} if tail is not None else {}
        query |= {"follow": "1"} if follow else {}
        with self._exchange("GET", f"{target}?{urlencode(query)}") as response:
            if response.status >= 300:
                raise self._refusal(response)
            while line := response.readline(LINE):
                if not line.strip():
                    continue
                record = self._json(line)
                if "error" in record:
                    raise CoveError.from_json(record["error"])
                yield record

    def doctor(self) -> list[Json]:
        """What the server's machine can do."""
        return list(self._call("GET", "/v1/doctor")["checks"])

    def version(self) -> Json:
        return self._call("GET", "/v1/version")

    def deploy(
        self,
        path: str | Path,
        name: str | None = None,
        on_progress: Callable[[str], None] | None = None,
    ) -> Json:
        """Deploy a file or folder and return the function once it serves.

        `CoveError` with the program's own last lines where it does not.
        """
        path = Path(path)
        tell = on_progress or (lambda text: None)
        if beside := left_beside(path):
            tell(f"only {path.name} is sent; to use {', '.join(beside)}, deploy its folder")
        with pack(path) as archive:
            query = {"fallback": fallback_name(path)} | ({"name": name} if name else {})
            with self._exchange(
                "POST", f"/v1/functions?{urlencode(query)}", body=archive
            ) as response:
                if response.status >= 300:
                    raise self._refusal(response)
                return self._follow(response, tell)

    def _follow(self, response: http.client.HTTPResponse, tell: Callable[[str], None]) -> Json:
        while line := response.readline(LINE):
            if not line.strip():
                continue
            event = self._json(line)
            match event.get("event"):
                case "progress":
                    tell(str(event.get("text", "")))
                case "deployed":
                    return dict(event["function"])
                case "error":
                    raise CoveError.from_json(event["error"])
        raise self._lost("it ended without saying how the deploy went")

    def _call(self, method: str, target: str, given: Json | None = None) -> Json:
        body = None if given is None else io.BytesIO(json.dumps(given).encode())
        with self._exchange(method, target, body, "application/json") as response:
            if response.status >= 300:
                raise self._refusal(response)
            return self._json(response.read())

    @contextmanager
    def _exchange(
        self,
        method: str,
        target: str,
        body: IO[bytes] | None = None,
        kind: str = "application/gzip",
    ) -> Iterator[http.client.HTTPResponse]:
        """One request on a connection of its own; socket errors become `CoveError`s."""
        speaks = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        connection = speaks(self._host, self._port, timeout=self._timeout)
        try:
            try:
                connection.connect()
            except OSError as fault:
                raise CoveError(
                    "unreachable",
                    f"no Cove server answers at {self.url}: {fault.strerror or fault}",
                    hint="start it with `cove up`, or say where it is with --url or COVE_URL",
                ) from fault
            try:
                self._send(connection, method, self._prefix + target, body, kind)
                yield connection.getresponse()
            except (OSError, http.client.HTTPException) as fault:
                raise self._lost(str(fault) or type(fault).__name__) from fault
        finally:
            connection.close()

    def _send(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        target: str,
        body: IO[bytes] | None,
        kind: str,
    ) -> None:
        headers: dict[str, str] = {"Accept": "application/json, application/x-ndjson"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        if body is not None:
            headers["Content-Type"] = kind
            headers["Content-Length"] = str(body.seek(0, 2))
            body.seek(0)
        try:
            connection.request(method, target, body=body, headers=headers)
        except (BrokenPipeError, ConnectionResetError):
            # A server that refuses an archive answers before it has read it: hear why.
            if body is None:
                raise

    def _refusal(self, response: http.client.HTTPResponse) -> CoveError:
        error = self._json(response.read(), response.status).get("error")
        if not isinstance(error, Mapping):
            raise self._stranger(response.status)
        return CoveError.from_json(error)

    def _json(self, text: bytes, status: int = 200) -> Json:
        try:
            body = json.loads(text)
        except ValueError as fault:
            raise self._stranger(status) from fault
        if not isinstance(body, dict):
            raise self._stranger(status)
        return body

    def _stranger(self, status: int) -> CoveError:
        return CoveError(
            "bad_gateway",
            f"{self.url} answered {status} and not as a Cove server does",
            hint="is something else listening there? say where Cove is with --url or COVE_URL",
        )

    def _lost(self, why: str) -> CoveError:
        return CoveError(
            "unreachable",
            f"the connection to {self.url} was lost: {why}",
            hint="a deploy under way goes on; `cove list` shows what serves",
        )
