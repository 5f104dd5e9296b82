"""Loss: what callers are told of an instance that is no more, or does not answer."""

from __future__ import annotations

import asyncio
from typing import Any

from cove.drivers.base import Exit
from cove.engine.instance import Instance
from cove.errors import CoveError
from cove.states import InstanceState

TRIES = 3
"""Instances that one request is brought to, one after the other, while none of them is reached."""

_NOTICED = 0.25


async def gone(instance: Instance) -> bool:
    """Whether an instance serves no more; its exit is noticed a moment after its sockets close."""
    if instance.running is not None and instance.state is not InstanceState.STOPPED:
        await asyncio.wait([instance.running.exited], timeout=_NOTICED)
    return instance.state is not InstanceState.READY


def lost(name: str, instance: Instance | None, happened: str) -> CoveError:
    """`bad_gateway`, for `name`: what happened there, how its instance ended, where more is said.

    After `gone`, which is how long its end was waited for.
    """
    text = f"{name} did not answer: {happened}"
    if instance is None:
        return CoveError("bad_gateway", text)
    hint = f"`cove logs {name} --instance {instance.id}` shows what it printed"
    detail: dict[str, Any] = {"instance": instance.id}
    how = instance.exit
    if how is not None:
        text += f"; its instance ended: {how}"
        if reason := _reason(how):
            detail["reason"] = reason
        if how.oom:
            hint += "; raise limits.memory in cove.toml if it needs more"
    elif instance.state is InstanceState.READY:
        text += f"; its instance had not ended {_NOTICED:g} s later"
    else:
        text += "; its instance was being stopped"
    return CoveError("bad_gateway", text, hint=hint, detail=detail)


def _reason(how: Exit) -> dict[str, Any]:
    """An exit for programs."""
    if how.oom:
        return {"oom": True, "memory": how.memory}
    if how.signal is not None:
        return {"signal": how.signal}
    return {"exit_code": how.code} if how.code is not None else {}
