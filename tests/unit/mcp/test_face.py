"""`/mcp` without a server around it: what becomes of a call whose agent goes away."""

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from runstead.mcp.face import McpContext, McpFace

JOB = {
    "id": "a" * 24,
    "owner": {"name": "mia", "type": "user"},
    "status": {"stage": "RUNNING"},
    "command": ["sleep", "1000"],
}
CALL = {"operation": "wait", "args": {"job_id": "a" * 24, "namespace": "mia", "wait_seconds": 600}}


@dataclass
class Log:
    """The log of a job that never ends: says when somebody follows it, and when nobody does any more."""

    followed: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b": alive\n\n", "more_body": True})
        self.followed.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.left.set()


class Anybody:
    """Accounts where every token is somebody's."""

    async def recognize(self, value: str | None) -> object:
        return object()


async def _job(_: Request) -> Response:
    return JSONResponse(JOB)


@pytest.fixture
async def log() -> Log:
    return Log()


@pytest.fixture
async def face(log: Log) -> AsyncGenerator[McpFace]:
    app = Starlette(
        routes=[Route("/api/jobs/mia/{job_id}", _job), Route("/api/jobs/mia/{job_id}/logs", cast("Any", log))]
    )
    nothing = cast("Any", None)
    made = McpFace(app, McpContext(cast("Any", Anybody()), nothing, nothing, nothing, None))
    yield made
    await made.close()


class Exchange:
    """One request by an agent that may go away."""

    def __init__(self, face: McpFace, version: str) -> None:
        meta = {
            "io.modelcontextprotocol/protocolVersion": version,
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        params = {"name": "hf_jobs", "arguments": CALL, "_meta": meta}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        self._messages: list[Message] = [{"type": "http.request", "body": json.dumps(body).encode()}]
        self._gone = asyncio.Event()
        self.answer: list[Message] = []
        headers = {
            "host": "localhost",
            "authorization": "Bearer x",
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            "mcp-protocol-version": version,
            "mcp-method": "tools/call",
            "mcp-name": "hf_jobs",
        }
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "server": ("localhost", 80),
            "client": ("127.0.0.1", 1),
            "path": "/mcp",
            "raw_path": b"/mcp",
            "root_path": "",
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        }
        self.served = asyncio.create_task(face(scope, self._receive, self._send))

    def leave(self) -> None:
        self._gone.set()

    async def _receive(self) -> Message:
        if self._messages:
            return self._messages.pop()
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._gone.is_set():
            raise OSError("the agent has gone")
        self.answer.append(message)


@pytest.mark.parametrize("version", ["2026-07-28", "2025-11-25"])
async def test_nothing_goes_on_for_an_agent_that_went_away(face: McpFace, log: Log, version: str) -> None:
    exchange = Exchange(face, version)
    await asyncio.wait({exchange.served, asyncio.create_task(log.followed.wait())}, return_when=asyncio.FIRST_COMPLETED)
    assert log.followed.is_set(), exchange.answer
    exchange.leave()
    async with asyncio.timeout(20):
        await log.left.wait()
        await asyncio.gather(exchange.served, return_exceptions=True)


async def test_a_server_that_stops_ends_what_it_answers(face: McpFace, log: Log) -> None:
    exchange = Exchange(face, "2025-11-25")
    await log.followed.wait()
    async with asyncio.timeout(20):
        await face.close()
        await log.left.wait()
    exchange.leave()
    await asyncio.gather(exchange.served, return_exceptions=True)
