"""Commands, attended to and in the background."""

import asyncio
import codecs
import contextlib
import re
import time
from typing import Any, Protocol

from runstead.model.errors import Invalid, NotRunning
from runstead.model.executions import Ended, Output
from runstead.sandbox import wire
from runstead.sandbox.exchange import ClientGone, Exchange
from runstead.services.sandboxes.sandboxes import Room

_LONGEST_BODY = 16 * 2**20
_PING_SECONDS = 15.0
_EVENTS = [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
_PROCESS = re.compile(r"p-(\d{1,12})")
_KILLED = 9


async def execute(exchange: Exchange, room: Room, closing: asyncio.Event) -> None:
    """Run a command and stream what it writes; it ends with the connection, and with `closing`."""
    body = await exchange.json(_LONGEST_BODY)
    command = wire.command_of(body, room.environment)
    if body.get("background"):
        process = await room.inside.spawn(command, wire.tag_of(body))
        await exchange.answer_json({**wire.started_json(process)})
        return
    data = wire.stdin_of(body) if command.input else b""
    began = time.monotonic()
    execution = await room.inside.execute(command)
    tasks: list[asyncio.Task[Any]] = []
    try:
        if command.input:
            tasks.append(asyncio.create_task(_feed(execution, data)))
        gone = asyncio.create_task(exchange.gone())
        closed = asyncio.create_task(closing.wait())
        tasks += [gone, closed]
        await exchange.start(_EVENTS)
        await exchange.send(wire.event_line("start", pid=execution.pid))
        decoders = _Decoders()
        try:
            while (output := await _next(exchange, execution, gone, closed)) is not None:
                if line := decoders.line(output):
                    await exchange.send(line)
            for line in decoders.rest():
                await exchange.send(line)
            ended = await execution.wait()
        except NotRunning:  # the sandbox was ended with all that ran in it
            ended = Ended(exit_code=None, signal=_KILLED)
        except _Closing:
            await exchange.send(b"", more=False)  # without an exit, which clients take for a lost connection
            return
        await exchange.send(wire.exit_line(ended, time.monotonic() - began), more=False)
    finally:
        for task in tasks:
            task.cancel()
        await execution.close()


class _Attended(Protocol):
    """A command that runs."""

    async def read(self) -> Output | None: ...
    async def write(self, data: bytes) -> None: ...
    async def end_input(self) -> None: ...


class _Closing(Exception):
    """This server is about to stop."""


async def _next(
    exchange: Exchange, execution: _Attended, gone: "asyncio.Task[None]", closed: "asyncio.Task[bool]"
) -> Output | None:
    """Return the next piece of output, with a sign of life to the client whenever it takes long."""
    reading = asyncio.ensure_future(execution.read())
    try:
        while True:
            await asyncio.wait({reading, gone, closed}, timeout=_PING_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                return reading.result()
            if gone.done():
                raise ClientGone
            if closed.done():
                raise _Closing
            await exchange.send(wire.event_line("ping"))
    finally:
        if not reading.done():
            reading.cancel()
            await asyncio.wait([reading])


async def _feed(execution: _Attended, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError, NotRunning):  # it need not read all of it
        if data:
            await execution.write(data)
        await execution.end_input()


class _Decoders:
    """Bytes to text, with what is cut in the middle of a character held back for the next piece."""

    def __init__(self) -> None:
        self._of = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in ("stdout", "stderr")}

    def line(self, output: Output) -> bytes | None:
        text = self._of[output.stream].decode(output.data)
        return wire.event_line(output.stream, data=text) if text else None

    def rest(self) -> list[bytes]:
        left = {name: decoder.decode(b"", final=True) for name, decoder in self._of.items()}
        return [wire.event_line(name, data=text) for name, text in left.items() if text]


async def spawn(exchange: Exchange, room: Room) -> None:
    """Start a command in the background."""
    body = await exchange.json(_LONGEST_BODY)
    command = wire.command_of({**body, "stdin": None, "timeout": None}, room.environment)
    await exchange.answer_json(wire.started_json(await room.inside.spawn(command, wire.tag_of(body))))


async def processes(exchange: Exchange, room: Room) -> None:
    """List the commands of the background."""
    await exchange.answer_json([wire.process_json(process) for process in await room.inside.background()])


async def kill(exchange: Exchange, room: Room, name: str) -> None:
    """Kill a command of the background; clients before 1.30 know it by its process id."""
    if name.isascii() and name.isdigit() and len(name) <= 12:
        running = [one for one in await room.inside.background() if one.pid == int(name) and one.ended is None]
        number = running[-1].id if running else None
    elif found := _PROCESS.fullmatch(name):
        number = int(found[1])
    else:
        raise Invalid(f"a process has an id like p-0, not {name[:40]!r}")
    killed = number is not None and await room.inside.kill(number)
    await exchange.answer_json({"id": name, "killed": killed})
