"""`/v1/functions/{name}/versions` and `/rollback`: what was deployed, and going back to it.

    GET    /v1/functions/{name}/versions   {"versions": [{number, state, live, created_at, error}…]}
    POST   /v1/functions/{name}/rollback   {"version": n} or nothing in;
                                           {"function", "version", "was", "changed"}

Going back to the version that is live changes nothing, and says so.
"""

from __future__ import annotations

from starlette.requests import Request

from cove.api.control import Control
from cove.api.json_body import json_object
from cove.api.replies import Reply
from cove.errors import CoveError

LIMIT = 4096
WANTED = '{"version": 3}, or nothing for the newest below the live one that works'


class VersionRoutes:
    """The endpoints over `control`."""

    def __init__(self, control: Control) -> None:
        self._control = control

    async def get(self, request: Request) -> Reply:
        return Reply({"versions": self._control.versions(request.path_params["name"])})

    async def rollback(self, request: Request) -> Reply:
        given = await json_object(request, LIMIT, WANTED)
        number = given.pop("version", None)
        if given or not (number is None or type(number) is int):
            raise CoveError(
                "bad_request", "the body says something else than a version", hint=f"send {WANTED}"
            )
        return Reply(await self._control.rollback(request.path_params["name"], number))
