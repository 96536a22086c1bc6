"""`runstead mcp`: the tools for a desktop agent, which starts this program and talks to it by its standard streams."""

import os
import sys

# Before the client is imported: it reads its environment then. Nothing of it may draw on the terminal.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import structlog
from mcp.server.stdio import stdio_server

import runstead
from runstead.mcp.hub import Hub
from runstead.mcp.protocol import Context, create_server
from runstead.mcp.remote import RemoteHub


async def serve(endpoint: str, token: str | None) -> None:
    """Answer until the agent closes the stream."""
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(file=sys.stderr))  # the other stream is the agent's
    hub = RemoteHub(endpoint, token or "", runstead.__version__)

    def hub_of(_: Context) -> Hub:
        return hub

    server = create_server(hub_of)
    try:
        async with stdio_server() as (reading, writing):
            await server.run(reading, writing, server.create_initialization_options())
    finally:
        await hub.close()
