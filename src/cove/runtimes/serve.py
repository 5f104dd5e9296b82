"""The program that serves a function's object, inside its instance.

Runs on the function's Python with the function's packages: nothing of Cove is there, so this file
imports the standard library only, and from the SDKs what it finds. Any Python from 3.9 on.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import os
import signal
import sys
import traceback
from contextlib import AsyncExitStack
from typing import Any

_KEEP_ALIVE = 75  # seconds; longer than the gateway keeps its idle connections
_GRACE = 2  # seconds that open streams may hold up the end
_SLACK = 60.0  # seconds that the SDK keeps a session longer than the gateway does
_SDK_BODY = 4 * 1024**2  # bytes; what the SDKs take if nothing else is said


def main() -> None:
    """Import `--app`, and serve it on 127.0.0.1:$PORT until SIGTERM."""
    # As pid 1 of a namespace a program without a handler does not get the signal at all.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    args = _arguments()
    _set_path()
    if args.disarm:
        _disarm(args.disarm)
    target = _load(args.app)
    app = _mcp_app(target, args) if args.kind == "mcp" else _web_app(target, args)
    try:
        import uvicorn
    except ImportError:
        _fail("uvicorn is not among the dependencies: add it, it serves the app")
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        log_level="warning",
        access_log=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=_GRACE,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--app", required=True, help="module:object")
    parser.add_argument("--kind", choices=["mcp", "web"], default="mcp")
    parser.add_argument("--transport", choices=["http", "sse"], default="http")
    parser.add_argument("--path", default="/mcp")
    parser.add_argument("--body", type=int, default=_SDK_BODY, help="bytes a request may have")
    parser.add_argument("--session-idle", type=float, default=1800.0, help="seconds")
    parser.add_argument("--disarm", default="", help="module:Class whose run() returns at once")
    return parser.parse_args()


def _set_path() -> None:
    """The function's folder first; not this file's, whose neighbours are no packages of its."""
    here = os.path.dirname(os.path.abspath(__file__))
    rest = [path for path in sys.path if os.path.abspath(path or ".") != here]
    own = [path for path in (os.getcwd(), os.path.join(os.getcwd(), "src")) if os.path.isdir(path)]
    sys.path[:] = own + rest


def _disarm(name: str) -> None:
    module, _, cls = name.partition(":")
    getattr(importlib.import_module(module), cls).run = lambda *_args, **_options: None


def _load(entry: str) -> Any:
    """The object that `module:object` names; a clear word and exit 1 where there is none."""
    name, _, path = entry.partition(":")
    file = name.replace(".", "/") + ".py"
    sys.argv = [file]
    try:
        module = _import(name, file)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            _fail(f"there is no module {name!r}")
        _show(error)
        _fail(f"{file} needs {error.name!r}, which is not among the dependencies")
    except Exception as error:
        _show(error)
        _fail(f"{file} failed while it was imported")
    target: Any = module
    for part in path.split("."):
        if not hasattr(target, part):
            _fail(f"{file} has no object {path!r}{_nearest(module)}")
        target = getattr(target, part)
    return target


def _import(name: str, file: str) -> Any:
    if name not in sys.modules:
        return importlib.import_module(name)
    # A file called like what runs already, such as __main__.py or site.py, is loaded by its path.
    path = file if os.path.exists(file) else os.path.join("src", file)
    spec = importlib.util.spec_from_file_location("cove_main", os.path.abspath(path))
    if spec is None or spec.loader is None or not os.path.exists(path):
        raise ModuleNotFoundError(name=name)
    module = importlib.util.module_from_spec(spec)
    sys.modules["cove_main"] = module
    spec.loader.exec_module(module)
    return module


def _nearest(module: Any) -> str:
    kinds = {"FastMCP", "MCPServer", "Server", "FastAPI", "Starlette", "Quart"}
    found = [name for name, value in vars(module).items() if type(value).__name__ in kinds]
    return f"; it has {', '.join(found)}" if found else ""


def _show(error: BaseException) -> None:
    """The function's own part of a traceback."""
    trace = error.__traceback__
    while trace is not None and _is_machinery(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    traceback.print_exception(type(error), error, trace)


def _is_machinery(filename: str) -> bool:
    return filename == __file__ or "importlib" in filename


def _fail(message: str) -> Any:
    print(message, file=sys.stderr, flush=True)  # noqa: T201  stderr is how an instance speaks
    sys.exit(1)


def _wrong(args: argparse.Namespace, target: Any, wanted: str) -> Any:
    file, _, name = args.app.partition(":")
    kind = type(target).__name__
    article = "an" if kind[0].lower() in "aeiou" else "a"
    return _fail(f"{file}.py: {name} is {article} {kind}, not {wanted}")


def _web_app(target: Any, args: argparse.Namespace) -> Any:
    if hasattr(target, "wsgi_app"):
        _wrong(args, target, 'an ASGI app; serve WSGI by command = "…" in cove.toml')
    if not callable(target):
        _wrong(args, target, "an ASGI app")

    async def prefixed(scope: Any, receive: Any, send: Any) -> None:
        """The app under the path that its callers see, so that the links it makes lead back."""
        prefix = dict(scope.get("headers", ())).get(b"x-forwarded-prefix", b"").rstrip(b"/")
        if prefix.startswith(b"/"):
            root = prefix.decode("latin-1")
            raw = prefix + scope.get("raw_path", scope["path"].encode())
            # ASGI, "HTTP Connection Scope": path includes root_path.
            scope = {**scope, "root_path": root, "path": root + scope["path"], "raw_path": raw}
        await target(scope, receive, send)

    return prefixed


def _mcp_app(target: Any, args: argparse.Namespace) -> Any:
    """An ASGI app for whatever serves MCP, newest kinds first."""
    sse = args.transport == "sse"
    if hasattr(target, "http_app"):  # the package fastmcp, 2.3 and later
        return target.http_app(path=args.path, transport="sse" if sse else "http")
    settings = getattr(target, "settings", None)
    if hasattr(settings, "streamable_http_path"):  # FastMCP of mcp 1.x
        return _fastmcp_app(target, settings, args)
    if sse and hasattr(target, "sse_app"):  # MCPServer of mcp 2.x
        return _call(
            target.sse_app, sse_path=args.path, max_request_body_size=max(args.body, _SDK_BODY)
        )
    if not sse and hasattr(target, "streamable_http_app"):  # MCPServer and Server of mcp 2.x
        return _call(
            target.streamable_http_app,
            streamable_http_path=args.path,
            max_request_body_size=max(args.body, _SDK_BODY),
            session_idle_timeout=max(args.session_idle + _SLACK, 1800.0),
        )
    if hasattr(target, "create_initialization_options"):  # Server of mcp 1.x, or 2.x over SSE
        return _sse_app(target, args) if sse else _StreamableApp(target, args)
    if callable(target) and not inspect.isclass(target) and not inspect.isfunction(target):
        return target  # an ASGI app that holds an MCP server
    return _wrong(args, target, "an MCP server")


def _call(method: Any, **options: Any) -> Any:
    """`method` with those options that this version of the SDK knows."""
    known = inspect.signature(method).parameters
    return method(**{name: value for name, value in options.items() if name in known})


def _fastmcp_app(target: Any, settings: Any, args: argparse.Namespace) -> Any:
    if hasattr(settings, "max_request_body_size"):
        settings.max_request_body_size = max(settings.max_request_body_size, args.body)
    if getattr(settings, "session_idle_timeout", None):
        settings.session_idle_timeout = max(
            settings.session_idle_timeout, args.session_idle + _SLACK
        )
    if args.transport == "sse":
        settings.sse_path = args.path
        return target.sse_app()
    settings.streamable_http_path = args.path
    return target.streamable_http_app()


def _sse_app(server: Any, args: argparse.Namespace) -> Any:
    from mcp.server.sse import SseServerTransport

    messages = "/messages/"
    transport = SseServerTransport(messages)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] == args.path and scope["method"] == "GET":
            async with transport.connect_sse(scope, receive, send) as (reader, writer):
                await server.run(reader, writer, server.create_initialization_options())
        elif scope["path"] == messages:
            await transport.handle_post_message(scope, receive, send)
        else:
            await _refuse(send, 405 if scope["path"] == args.path else 404)

    return app


class _StreamableApp:
    """A low-level server of mcp 1.x over Streamable HTTP."""

    def __init__(self, server: Any, args: argparse.Namespace) -> None:
        from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

        options = {
            "app": server,
            "session_idle_timeout": args.session_idle + _SLACK,
            "max_request_body_size": max(args.body, _SDK_BODY),
        }
        self.manager = _call(StreamableHTTPSessionManager, **options)
        self.path = args.path

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http" and scope["path"].rstrip("/") == self.path.rstrip("/"):
            await self.manager.handle_request(scope, receive, send)
        elif scope["type"] == "http":
            await _refuse(send, 404)

    async def _lifespan(self, receive: Any, send: Any) -> None:
        async with AsyncExitStack() as stack:
            await receive()
            await stack.enter_async_context(self.manager.run())
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


async def _refuse(send: Any, status: int) -> None:
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b""})


if __name__ == "__main__":
    main()
