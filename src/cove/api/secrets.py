"""`/v1/secrets`: names are told, values are taken and never told.

    GET    /v1/secrets          {"secrets": [{name, created_at, updated_at, functions}…]}
    PUT    /v1/secrets/{name}   {"value": "…"} in; the secret as GET tells of it, and `applies`
    DELETE /v1/secrets/{name}   {"removed": name}

A changed value reaches no instance that runs: `applies` says so to programs.
"""

from __future__ import annotations

from starlette.requests import Request

from cove.api.control import Control
from cove.api.json_body import json_object
from cove.api.replies import Reply
from cove.config import LARGEST_VALUE
from cove.errors import CoveError

# JSON may write each byte of a value as six.
LIMIT = 6 * LARGEST_VALUE + 1024
WANTED = '{"value": "…"}'
APPLIES = "to instances that start from now on"


class SecretRoutes:
    """The endpoints over `control`."""

    def __init__(self, control: Control) -> None:
        self._control = control

    async def get(self, request: Request) -> Reply:
        return Reply({"secrets": self._control.secrets()})

    async def put(self, request: Request) -> Reply:
        given = await json_object(request, LIMIT, WANTED)
        value = given.get("value")
        if not isinstance(value, str) or len(given) != 1:
            raise CoveError(
                "bad_request", "the body has no value, or more than it", hint=f"send {WANTED}"
            )
        kept = await self._control.set_secret(request.path_params["name"], value)
        return Reply({**kept, "applies": APPLIES})

    async def delete(self, request: Request) -> Reply:
        name = request.path_params["name"]
        await self._control.remove_secret(name)
        return Reply({"removed": name})
