"""Identity, and the small calls that a client makes in the background."""

from typing import Any

from fastapi import Request

from runstead.api import wire
from runstead.api.auth import CallerOf
from runstead.api.context import base_url


async def whoami(request: Request, caller: CallerOf) -> dict[str, Any]:
    """Tell the caller who they are, and which organizations they are in."""
    return wire.whoami_json(caller, base_url(request))


async def agent_harnesses() -> dict[str, Any]:
    """Answer the client's look-up of agent harnesses; an error would be asked for again at every command."""
    return {"standardEnvVars": [], "harnesses": {}}


async def health() -> dict[str, str]:
    """Say that the server answers."""
    return {"status": "ok"}
