"""An agent as the server meets it: the official MCP client, over each transport."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, ResourceLink, TextContent

from clients import Server

# How an agent reaches the tools: over HTTP in both eras of the protocol, and as the parent of a program.
TRANSPORTS = ("http", "http-handshake", "stdio")


@dataclass
class Agent:
    """A connected client, and what it was told of progress."""

    client: Client
    progress: list[tuple[float, float | None, str | None]] = field(default_factory=list)
    told: asyncio.Event = field(default_factory=asyncio.Event)

    async def call(self, tool: str, arguments: dict[str, Any]) -> CallToolResult:
        """Call a tool. The client checks the structured output against the tool's schema."""
        self.progress.clear()
        self.told.clear()
        found = await self.client.call_tool(tool, arguments, progress_callback=self._progressed)
        assert isinstance(found, CallToolResult)
        return found

    async def jobs(self, operation: str, **args: Any) -> dict[str, Any]:
        """Carry out an operation that succeeds; return its outcome."""
        found = await self.call("hf_jobs", {"operation": operation, "args": args})
        assert not found.is_error, text_of(found)
        return found.structured_content["outcome"]

    async def refused(self, operation: str, **args: Any) -> tuple[dict[str, Any], list[str]]:
        """Carry out an operation that does not succeed; return its outcome and what to do next."""
        found = await self.call("hf_jobs", {"operation": operation, "args": args})
        assert found.is_error, text_of(found)
        return found.structured_content["outcome"], found.structured_content["next_steps"]

    async def _progressed(self, progress: float, total: float | None, message: str | None) -> None:
        self.progress.append((progress, total, message))
        self.told.set()


def text_of(result: CallToolResult) -> str:
    """Return what a model reads of a result."""
    return "\n".join(block.text for block in result.content if isinstance(block, TextContent))


def links_of(result: CallToolResult) -> Sequence[ResourceLink]:
    """Return the resources that a result points to."""
    return [block for block in result.content if isinstance(block, ResourceLink)]


@asynccontextmanager
async def connected(transport: str, server: Server, home: Path, token: str | None = None) -> AsyncIterator[Agent]:
    """Connect an agent with the owner's token, or with another."""
    token = server.token if token is None else token
    if transport == "stdio":
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "RUNSTEAD_"))}
        environment = inherited | {"HF_ENDPOINT": server.url, "HF_TOKEN": token, "HF_HOME": str(home)}
        program = StdioServerParameters(
            command=sys.executable, args=["-m", "runstead.cli", "mcp"], env=environment, cwd=home
        )
        async with Client(program) as client:
            yield Agent(client)
        return
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with httpx2.AsyncClient(headers=headers, timeout=60) as http:
        mode = "legacy" if transport == "http-handshake" else "auto"
        async with Client(streamable_http_client(f"{server.url}/mcp", http_client=http), mode=mode) as client:
            yield Agent(client)
