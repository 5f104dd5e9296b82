"""What `cove up` was told."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from cove.config import OperatorConfig, read_operator
from cove.config.operator import LogsConfig
from cove.errors import CoveError
from cove.gateway.listener import is_loopback
from cove.paths import default_data


@dataclass(frozen=True, slots=True)
class Options:
    """What `cove up` was told, with DATA/config.toml and the defaults below it."""

    data: Path
    host: str
    port: int
    domain: str
    driver: str
    drain: float
    keep: bool
    logs: LogsConfig
    json: bool

    @property
    def loopback(self) -> bool:
        return is_loopback(self.host)

    @property
    def url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; exits with 2 where it is not understood."""
    parser = argparse.ArgumentParser(prog="cove up")
    parser.add_argument("what", nargs="?", choices=["up", "doctor"], default="up")
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--listen", default=None)
    parser.add_argument("--domain", default=None)
    parser.add_argument("--driver", choices=["auto", "oci", "process"], default="auto")
    parser.add_argument("--keep-instances", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args(argv)


def options_of(given: argparse.Namespace) -> Options:
    """With DATA/config.toml and the defaults below it. `bad_config` where they make no sense."""
    data = (given.data or Path(os.environ.get("COVE_DATA") or default_data())).absolute()
    file = data / "config.toml"
    operator = read_operator(file.read_text(), str(file)) if file.exists() else OperatorConfig()
    listen = given.listen or operator.listen or "127.0.0.1:7070"
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise CoveError(
            "bad_config", f"--listen {listen} is not HOST:PORT", hint="such as 127.0.0.1:7070"
        )
    return Options(
        data=data,
        host=host.strip("[]") or "127.0.0.1",
        port=int(port),
        domain=(given.domain or operator.domain or "localhost").lower().strip("."),
        driver=given.driver,
        drain=operator.drain,
        keep=given.keep_instances,
        logs=operator.logs,
        json=given.json,
    )
