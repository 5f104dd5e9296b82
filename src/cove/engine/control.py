"""What the control API drives: the engine's nouns as JSON-ready dictionaries."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cove import clock
from cove.drivers.base import Check
from cove.engine.functions import Entry, Functions
from cove.engine.instance import Instance
from cove.engine.secrets import Secrets
from cove.engine.sessions import Sessions
from cove.logs.logs import Logs
from cove.logs.records import Record, Wanted
from cove.model import SessionRecord, Version
from cove.states import VersionState


class Addresses:
    """Where functions answer: by path under `url`, by host under `domain`."""

    def __init__(self, url: str, domain: str) -> None:
        self.url = url.rstrip("/")
        self.domain = domain
        scheme, _, rest = self.url.partition("://")
        port = rest.rpartition(":")[2] if ":" in rest.rpartition("]")[2] else ""
        self._hosted = f"{scheme}://{{}}.{domain}" + (f":{port}" if port else "")

    def of(self, version: Version) -> dict[str, str]:
        """URLs of a function by what is spoken there."""
        path, host = f"{self.url}/fn/{version.function}", self._hosted.format(version.function)
        if version.spec.kind == "mcp":
            return {"mcp": f"{path}/mcp", "sse": f"{path}/sse", "host": f"{host}/mcp"}
        return {"web": f"{path}/", "host": f"{host}/"}


class EngineControl:
    """Functions, sessions and the machine's checks, as `cove.api.control.Control` wants them."""

    def __init__(
        self,
        functions: Functions,
        sessions: Sessions,
        addresses: Addresses,
        checks: Sequence[Check],
        authenticate: Callable[[str], str | None],
        *,
        key_by_default: bool,
        logs: Logs,
        secrets: Secrets,
    ) -> None:
        self._functions = functions
        self._sessions = sessions
        self._addresses = addresses
        self._checks = checks
        self._logs = logs
        self._key_by_default = key_by_default
        self._secrets = secrets
        self.authenticate = authenticate

    async def deploy(
        self, archive: Path, *, name: str | None, fallback: str, progress: Callable[[str], None]
    ) -> str:
        return await self._functions.deploy(
            archive, name=name, fallback=fallback, progress=progress
        )

    async def remove(self, name: str) -> None:
        await self._functions.remove(name)

    def versions(self, name: str) -> list[dict[str, Any]]:
        entry = self._functions.get(name)
        return [
            {
                "number": version.number,
                "state": version.state.value,
                "live": version.number == entry.live,
                "created_at": clock.iso(version.created_at),
                "error": version.error,
            }
            for _, version in sorted(entry.versions.items(), reverse=True)
        ]

    async def rollback(self, name: str, number: int | None) -> dict[str, Any]:
        version, was = await self._functions.rollback(name, number)
        return {
            "function": name,
            "version": version.number,
            "was": was,
            "changed": version.number != was,
        }

    def secrets(self) -> list[dict[str, Any]]:
        return self._secrets.list(self._functions.naming)

    async def set_secret(self, name: str, value: str) -> dict[str, Any]:
        return await self._secrets.set(name, value, self._functions.naming)

    async def remove_secret(self, name: str) -> None:
        await self._secrets.remove(name, self._functions.naming)

    def functions(self) -> list[dict[str, Any]]:
        return [
            {
                **self._summary(entry),
                "instances": len(entry.instances),
                "sessions": self._sessions.count(entry.name),
            }
            for entry in self._functions.all()
        ]

    def describe(self, name: str) -> dict[str, Any]:
        entry = self._functions.get(name)
        version = entry.version
        spec = version.spec
        key = self._key_by_default if spec.auth is None else spec.auth == "key"
        return {
            **self._summary(entry),
            "auth": "key" if key else "none",
            "failing": self._failing(entry),
            "notes": list(version.plan.notes),
            "facts": asdict(version.facts) if spec.kind == "mcp" else {},
            "secrets": list(spec.secrets),
            "limits": asdict(spec.limits),
            "scale": asdict(spec.scale),
            "session": {**asdict(spec.session), "affinity": str(spec.session.affinity)},
            "instances": [self._instance(v, i) for v, i in entry.instances],
            "sessions": self._sessions.count(name),
            "versions": [
                {
                    "number": v.number,
                    "state": v.state.value,
                    "created_at": clock.iso(v.created_at),
                    "error": v.error,
                }
                for v in sorted(entry.versions.values(), key=lambda v: v.number)
            ],
        }

    def _summary(self, entry: Entry) -> dict[str, Any]:
        version = entry.version
        return {
            "name": entry.name,
            "kind": version.spec.kind,
            "version": version.number,
            "state": self._state(entry),
            "urls": self._addresses.of(version),
            "isolation": version.isolation,
            "driver": version.driver,
        }

    def _failing(self, entry: Entry) -> dict[str, Any] | None:
        """Why its instances do not stay up, with the last one's last lines."""
        pool = entry.pools.get(entry.live) if entry.live is not None else None
        if pool is None or pool.failing is None or pool.ready:
            return None
        return pool.failing.to_json()

    def _state(self, entry: Entry) -> str:
        """Its version's, or `failing` where its instances do not stay up."""
        if entry.live is None:
            return VersionState.FAILED.value
        return "failing" if self._failing(entry) else entry.version.state.value

    def _instance(self, version: Version, instance: Instance) -> dict[str, Any]:
        usage = instance.running.usage() if instance.running is not None else None
        return {
            "id": instance.id,
            "version": version.number,
            "state": instance.state.value,
            "pid": instance.pid,
            "started_at": clock.iso(instance.started_at),
            "started_by": instance.started_by,
            "sessions": instance.slots,
            "requests": instance.inflight,
            "cpu_seconds": round(usage.cpu, 3) if usage else 0.0,
            "memory_bytes": usage.memory if usage else 0,
        }

    def sessions(self, name: str | None) -> list[dict[str, Any]]:
        if name is not None:
            self._functions.get(name)
        return [self._session(session.record()) for session in self._sessions.of(name)]

    def _session(self, record: SessionRecord) -> dict[str, Any]:
        return {
            "id": record.id,
            "function": record.function,
            "version": record.version,
            "principal": record.principal,
            "affinity": record.affinity,
            "key": record.key,
            "instance": record.instance,
            "created_at": clock.iso(record.created_at),
            "last_at": clock.iso(record.last_at),
        }

    def logs(
        self, name: str, wanted: Wanted, *, tail: int | None, follow: bool
    ) -> AsyncGenerator[list[Record], None]:
        self._functions.get(name)
        return self._logs.read(name, wanted, tail=tail, follow=follow)

    def events(
        self, wanted: Wanted, *, tail: int | None, follow: bool
    ) -> AsyncGenerator[list[Record], None]:
        return self._logs.read_events(wanted, tail=tail, follow=follow)

    def doctor(self) -> list[dict[str, Any]]:
        return [asdict(check) for check in self._checks]
