"""The control API, `/v1`: what `cove` and everybody else drives a server with.

An ASGI app without a listener of its own; in production the gateway has it as one more
upstream, on a unix socket.

    GET    /v1/functions                       {"functions": [summary…]}
    POST   /v1/functions?name=&fallback=       tar.gz in, NDJSON out (see `cove.api.deploys`)
    GET    /v1/functions/{name}                the function
    DELETE /v1/functions/{name}                {"removed": name}
    GET    /v1/functions/{name}/versions       {"versions": [version…]}
    POST   /v1/functions/{name}/rollback       {"version"} in (see `cove.api.versions`)
    GET    /v1/functions/{name}/logs           NDJSON (see `cove.api.logs`)
    GET    /v1/events                          NDJSON, likewise
    GET    /v1/sessions?function=              {"sessions": [session…]}
    GET    /v1/secrets                         {"secrets": [secret…]}
    PUT    /v1/secrets/{name}                  {"value"} in (see `cove.api.secrets`)
    DELETE /v1/secrets/{name}                  {"removed": name}
    GET    /v1/doctor                          {"checks": [check…]}
    GET    /v1/version                         {"version", "api"}
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from cove import __version__
from cove.api import replies, upload
from cove.api.control import Control
from cove.api.deploys import SILENCE, Deploys
from cove.api.edge import Edge
from cove.api.logs import LogStreams
from cove.api.replies import Reply
from cove.api.secrets import SecretRoutes
from cove.api.versions import VersionRoutes
from cove.errors import CoveError

Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(
    control: Control,
    *,
    uploads: Path | None = None,
    upload_limit: int = upload.LIMIT,
    silence: float = SILENCE,
) -> Starlette:
    """The API over `control`.

    `uploads` is the folder that archives wait in (the system's if None), `upload_limit` their
    bytes, `silence` the seconds after which a quiet deploy sends an empty line. Run it with
    lifespan on: at shutdown deploys under way are cancelled and waited for. uvicorn gets there
    only when their streams have ended, so a server in a hurry calls `app.state.deploys.close()`
    first.
    """
    deploys = Deploys(control, uploads, limit=upload_limit, silence=silence)
    secrets = SecretRoutes(control)
    versions = VersionRoutes(control)
    streams = LogStreams(control)

    async def functions(request: Request) -> Reply:
        return Reply({"functions": control.functions()})

    async def describe(request: Request) -> Reply:
        return Reply(control.describe(request.path_params["name"]))

    async def remove(request: Request) -> Reply:
        name = request.path_params["name"]
        await control.remove(name)
        return Reply({"removed": name})

    async def sessions(request: Request) -> Reply:
        function = request.query_params.get("function") or None
        return Reply({"sessions": control.sessions(function)})

    async def doctor(request: Request) -> Reply:
        return Reply({"checks": control.doctor()})

    async def version(request: Request) -> Reply:
        return Reply({"version": __version__, "api": "v1"})

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await deploys.close()

    app = Starlette(
        routes=[
            _route("/v1/functions", GET=functions, POST=deploys.post),
            _route("/v1/functions/{name}", GET=describe, DELETE=remove),
            _route("/v1/functions/{name}/versions", GET=versions.get),
            _route("/v1/functions/{name}/rollback", POST=versions.rollback),
            _route("/v1/functions/{name}/logs", GET=streams.logs),
            _route("/v1/events", GET=streams.events),
            _route("/v1/sessions", GET=sessions),
            _route("/v1/secrets", GET=secrets.get),
            _route("/v1/secrets/{name}", PUT=secrets.put, DELETE=secrets.delete),
            _route("/v1/doctor", GET=doctor),
            _route("/v1/version", GET=version),
        ],
        middleware=[Middleware(Edge, control=control)],
        exception_handlers={CoveError: replies.known, HTTPException: replies.unrouted},
        lifespan=lifespan,
    )
    app.state.deploys = deploys
    app.router.redirect_slashes = False
    return app


def _route(path: str, **methods: Endpoint) -> Route:
    # One Route a path: with one for each method, a 405 would name only the first's in Allow.
    async def endpoint(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        return await methods[method](request)

    return Route(path, endpoint, methods=list(methods))
