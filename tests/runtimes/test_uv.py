"""uv runs with pip's configuration, and never longer than it is wanted."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cove.errors import CoveError
from cove.runtimes import uv

RESOLVE = ["pip", "compile", "--no-cache", "--quiet"]


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    """An environment whose only configuration is what a test writes."""
    return {"HOME": str(tmp_path), "XDG_CONFIG_DIRS": str(tmp_path / "xdg"), "PATH": "/usr/bin"}


def test_pips_files_and_variables_are_said_in_uvs_words(
    home: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "wheels").mkdir()
    (tmp_path / ".config/pip").mkdir(parents=True)
    (tmp_path / ".config/pip/pip.conf").write_text(
        "[global]\nindex-url = https://one.example.com/simple\n"
        f"find-links = {tmp_path}/wheels\n    {tmp_path}/gone\n"
        f"[install]\nextra-index-url = https://two.example.com/simple file://{tmp_path}/gone\n"
        "trusted-host = one.example.com\n"
    )
    cert = tmp_path / "ca.pem"
    cert.write_text("")
    home |= {"PIP_INDEX_URL": "https://three.example.com/simple", "PIP_CERT": str(cert)}
    settings = uv.pip_settings({**home, "PIP_CONFIG_FILE": ""})
    env = uv.environment(home, settings)
    assert env["UV_DEFAULT_INDEX"] == "https://three.example.com/simple"
    assert env["UV_INDEX"] == "https://two.example.com/simple"
    assert env["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert env["UV_FIND_LINKS"] == f"{tmp_path}/wheels"
    assert env["UV_INSECURE_HOST"] == "one.example.com"
    assert env["SSL_CERT_FILE"] == str(cert)


def test_what_is_said_to_uv_itself_stands(home: dict[str, str]) -> None:
    said = {"UV_INDEX_URL": "https://a.example.com", "SSL_CERT_FILE": "/mine"}
    env = uv.environment(home | said, {"index-url": "https://b.example.com", "cert": "/dev/null"})
    assert env["UV_INDEX_URL"] == "https://a.example.com"
    assert "UV_DEFAULT_INDEX" not in env
    assert env["SSL_CERT_FILE"] == "/mine"


def test_a_virtual_environment_around_cove_is_not_uvs(home: dict[str, str]) -> None:
    env = uv.environment(home | {"VIRTUAL_ENV": "/v", "PYTHONPATH": "/p"}, {})
    assert "VIRTUAL_ENV" not in env
    assert "PYTHONPATH" not in env
    assert env["UV_PYTHON_DOWNLOADS"] == "never"


def test_a_broken_pip_configuration_does_not_stop_a_deploy(
    home: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / ".pip").mkdir()
    (tmp_path / ".pip/pip.conf").write_text("no section")
    assert "index-url" not in uv.pip_settings(home)


class Silent:
    """A package index that takes connections and never answers."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.gone = asyncio.Event()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.set()
        while await reader.read(1024):
            pass
        self.gone.set()
        writer.close()


@pytest.fixture
async def silent(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Silent]:
    index = Silent()
    server = await asyncio.start_server(index.serve, "127.0.0.1", 0)
    index.port = server.sockets[0].getsockname()[1]
    for name in [name for name in os.environ if name.startswith(("UV_", "PIP_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"http://127.0.0.1:{index.port}/simple")
    yield index
    server.close()


@pytest.fixture
def asking(tmp_path: Path) -> list[str]:
    (tmp_path / "requirements.in").write_text("mcp\n")
    return [*RESOLVE, str(tmp_path / "requirements.in")]


async def test_a_cancelled_resolution_leaves_no_process(silent: Silent, asking: list[str]) -> None:
    task = asyncio.create_task(uv.run(asking))
    async with asyncio.timeout(20):
        await silent.asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await silent.gone.wait()


async def test_a_resolution_that_takes_too_long_is_ended_and_said(
    silent: Silent, asking: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COVE_BUILD_TIMEOUT", "1")
    with pytest.raises(CoveError) as caught:
        await uv.run(asking)
    assert caught.value.code == "resolve_failed"
    assert "within 1 s" in caught.value.message
    async with asyncio.timeout(10):
        await silent.gone.wait()
