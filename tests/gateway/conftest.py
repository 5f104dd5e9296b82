"""Fixtures of the gateway's tests: uvloop, quick ticks, and a world to serve from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import uvloop

from gateway.world import World


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Cove's own loop."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks around in intervals looks often, so that no test waits for it."""
    monkeypatch.setattr("cove.gateway.gateway._CHECK_SECONDS", 0.01)
    monkeypatch.setattr("cove.engine.supervisor._TICK", 0.01)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with World().running() as world:
        yield world


@pytest.fixture
async def public() -> AsyncIterator[World]:
    """A gateway that believes its listener is reachable from elsewhere."""
    async with World(loopback=False).running() as world:
        yield world
