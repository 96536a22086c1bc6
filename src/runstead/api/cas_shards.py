"""Shards on the wire (wire-storage §5.2).

Version 2 answers in lines, because the text of an error line is all that a user ever sees of an error here, and
because a long check may say meanwhile that it goes on.
"""

import asyncio
import json

import structlog

from runstead.api.cas_request import CasRequest
from runstead.model.accounts import Permission
from runstead.model.errors import Invalid, RunsteadError, TooLarge
from runstead.xet.shard import MAX_SHARD_BYTES

log = structlog.get_logger()

_LINES = ((b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-store"))
_SIGN_OF_LIFE_SECONDS = 10.0


async def post_v2(request: CasRequest) -> None:
    """Register the files of a shard; the answer is a stream of lines, of which the last one tells the outcome."""
    scope = request.caller(Permission.WRITE).scope
    size = request.exchange.content_length or MAX_SHARD_BYTES
    async with request.content.shards.room_for(size):
        registering = asyncio.ensure_future(_register(request, scope))
        try:
            await asyncio.wait([registering], timeout=_SIGN_OF_LIFE_SECONDS)
            if registering.done():
                await request.exchange.answer(200, _line(registering), _LINES)
                return
            await request.exchange.start(200, _LINES)
            while not registering.done():
                await request.exchange.send(b'{"type":"committing","stage":"syncing"}\n')
                await asyncio.wait([registering], timeout=_SIGN_OF_LIFE_SECONDS)
            await request.exchange.send(_line(registering), more=False)
        finally:
            registering.cancel()


async def post_v1(request: CasRequest) -> None:
    """Register the files of a shard for an older client, which reads a status and one number."""
    scope = request.caller(Permission.WRITE).scope
    size = request.exchange.content_length or MAX_SHARD_BYTES
    async with request.content.shards.room_for(size):
        await _register(request, scope)
    await request.exchange.answer_json(200, {"result": 1})


async def _register(request: CasRequest, scope: str) -> None:
    try:
        body = await request.exchange.whole_body(MAX_SHARD_BYTES)
    except TooLarge as error:
        raise Invalid(f"a shard has at most {MAX_SHARD_BYTES} bytes; {error.message}") from error
    await request.content.shards.register(scope, request.store_id, body)


def _line(registering: "asyncio.Task[None]") -> bytes:
    error = registering.exception()
    if error is None:
        return b'{"type":"result","result":1}\n'
    if isinstance(error, RunsteadError):
        message, retryable = error.message, not isinstance(error, Invalid)
    else:
        log.error("a shard could not be registered", exc_info=error)
        message, retryable = "the server failed on this shard; its log says why", True
    return json.dumps({"type": "error", "message": message, "retryable": retryable}).encode() + b"\n"
