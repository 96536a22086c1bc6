"""An operation, one call of it, and what that gives back before it is put into words for the wire."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from runstead.mcp.following import Report
from runstead.mcp.hub import Hub, HubError
from runstead.mcp.outcome import Link

_ID = re.compile(r"[A-Za-z0-9_-]+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Call:
    """Who is asked, and who is told how far it is."""

    hub: Hub
    report: Report
    operation: str

    async def namespace(self, given: str | None) -> str:
        """Return the namespace that is meant. Raises HubError."""
        if given is not None:
            return given
        who = await self.hub.call("GET", "/api/whoami-v2")
        return who["name"]

    async def place(self, thing_id: str, namespace: str | None) -> tuple[str, str]:
        """Return namespace and id of a job or schedule, named by its id, as OWNER/ID, or by its URL."""
        owner, _, own_id = thing_id.strip().rstrip("/").rpartition("/")
        owner = owner.rpartition("/")[2]
        if not _ID.fullmatch(own_id) or (owner and not _NAME.fullmatch(owner)):
            raise HubError(404, f"that is no id: {thing_id[:100]!r}")
        return await self.namespace(owner or namespace), own_id


@dataclass(frozen=True, slots=True)
class Done:
    """What an operation found or did."""

    outcome: BaseModel
    text: str
    next_steps: Sequence[str] = ()
    links: Sequence[Link] = field(default=())
    total: int = 1
    is_error: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """What an operation is for, what it takes, and who does it."""

    summary: str
    arguments: type[BaseModel]
    perform: Callable[[Call, Any], Awaitable[Done]]
    args: Mapping[str, Any]  # an example
    name: str = ""

    @property
    def example(self) -> dict[str, Any]:
        """A call that can be copied."""
        return {"operation": self.name, **({"args": dict(self.args)} if self.args else {})}
