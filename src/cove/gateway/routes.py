"""Routes: host and path to a function, and what of the path is the function's own."""

from __future__ import annotations

from cove.engine.instance import Instance
from cove.engine.pool import Pool
from cove.gateway.destination import Destination
from cove.gateway.upstream import Upstream
from cove.metrics import FunctionStats
from cove.states import InstanceState

_PREFIX = b"/fn/"


class Route(Destination):
    """A function as the gateway sees it: its live pool, and its policy ready for use.

    `learns`: MCP session ids are Cove's to mint. Connections are kept per instance, those of
    older versions' sessions included.
    """

    __slots__ = (
        "affinity",
        "path",
        "pool",
        "prefix",
        "requires_key",
        "spec",
        "stateful",
        "upstreams",
    )

    def __init__(self, pool: Pool, stats: FunctionStats, *, key_by_default: bool) -> None:
        spec = pool.version.spec
        super().__init__(
            spec.name,
            stats,
            body=spec.limits.body,
            timeout=spec.limits.timeout,
            lifetime=spec.session.lifetime,
            port=spec.port,
            mcp=spec.kind == "mcp",
            learns=spec.session.affinity.kind == "mcp",
        )
        self.pool = pool
        self.spec = spec
        self.affinity = spec.session.affinity
        self.stateful = pool.version.facts.stateful
        self.path = pool.version.facts.path.encode()
        self.prefix = _PREFIX + spec.name.encode()
        self.requires_key = key_by_default if spec.auth is None else spec.auth == "key"
        self.upstreams: dict[str, Upstream] = {}

    def upstream(self, instance: Instance) -> Upstream:
        """Kept connections to an instance. `ConnectionRefusedError` once it is to stop."""
        found = self.upstreams.get(instance.id)
        if found is None:
            running = instance.running
            if running is None or instance.state is not InstanceState.READY:
                raise ConnectionRefusedError(f"{instance.id} has ended")
            found = self.upstreams[instance.id] = Upstream(running.connect)
            instance.on_stopping.add(lambda: self._drop(instance.id))
        return found

    def _drop(self, ident: str) -> None:
        upstream = self.upstreams.pop(ident, None)
        if upstream is not None:
            upstream.close()


class RouteTable:
    """Finds routes by `/fn/NAME/…` and by host `NAME.<domain>`. `epoch` counts its changes."""

    def __init__(self, domain: str) -> None:
        self._suffix = b"." + domain.encode()
        self._routes: dict[bytes, Route] = {}
        self.epoch = 0

    def put(self, route: Route) -> None:
        self.epoch += 1
        self._routes[route.name.encode()] = route

    def remove(self, name: str) -> None:
        self.epoch += 1
        self._routes.pop(name.encode(), None)

    def get(self, name: str) -> Route | None:
        return self._routes.get(name.encode())

    def all(self) -> list[Route]:
        return list(self._routes.values())

    def match(self, host: bytes, target: bytes) -> tuple[Route, bytes, bytes] | None:
        """Route, stripped prefix, and the rest of the target (a slash first)."""
        if target.startswith(_PREFIX):
            end = len(target)
            for stop in (b"/", b"?"):
                at = target.find(stop, 4, end)
                if at >= 0:
                    end = at
            route = self._routes.get(target[4:end])
            if route is None:
                return None
            rest = target[end:]
            return route, route.prefix, rest if rest.startswith(b"/") else b"/" + rest
        name = self.hosted(host)
        if name is None:
            return None
        route = self._routes.get(name)
        return None if route is None else (route, b"", target)

    def hosted(self, host: bytes) -> bytes | None:
        """The function's name in a host of the form NAME.<domain>, known or not."""
        bare = host.partition(b":")[0].lower()
        if not bare.endswith(self._suffix):
            return None
        name = bare[: -len(self._suffix)]
        return name if name and b"." not in name else None
