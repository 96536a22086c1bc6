"""Programs in one container, by the engine's own API: started, looked at, resized. Its connections block nobody."""

import asyncio
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from runstead.model.errors import Invalid, NotRunning, Unavailable, Unsupported
from runstead.model.executions import TerminalSize
from runstead.node.engine import Engine, EngineError, Frames

STDOUT, STDERR = 1, 2
Result = TypeVar("Result")
_READ_BYTES = 1 << 17
_HELD_BYTES = 1 << 20  # of output that nobody has read yet, then the program waits
_SECONDS = 30.0
_LOOK_SECONDS = 0.01
_LOOK_SECONDS_MOST = 0.5
_SAID_BYTES = 1 << 16  # before the first line of ours
_SHELL = "/bin/sh"


class Stream:
    """What comes from a program, and goes to it: one connection, on which both outputs are told apart."""

    def __init__(self, connection: socket.socket, *, raw: bool) -> None:
        """`raw`: a terminal, where there is but one output."""
        connection.setblocking(False)
        self._connection = connection
        self._frames = None if raw else Frames()
        self._pieces: deque[tuple[int, bytes]] = deque()
        self._held = 0
        self._news = asyncio.Event()  # pieces, or the end
        self._room = asyncio.Event()
        self.ended = False
        self.settled = asyncio.Event()  # it has ended, or waits for us to read
        self._reading = asyncio.create_task(self._receive())

    async def _receive(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(self._connection, _READ_BYTES):
                pieces = [(STDOUT, data)] if self._frames is None else self._frames.feed(data)
                self._pieces.extend(pieces)
                self._held += sum(len(piece) for _, piece in pieces)
                self._news.set()
                while self._held > _HELD_BYTES:
                    self._room.clear()
                    self.settled.set()
                    await self._room.wait()
                self.settled.clear()
        except OSError:
            pass
        finally:
            self.ended = True
            self._news.set()
            self.settled.set()

    async def read(self) -> tuple[int, bytes] | None:
        """Return the next piece of output with its stream; None after the last."""
        while not self._pieces:
            if self.ended:
                return None
            self._news.clear()
            await self._news.wait()
        stream, piece = self._pieces.popleft()
        self._held -= len(piece)
        self._room.set()
        return stream, piece

    def unread(self, pieces: Sequence[tuple[int, bytes]]) -> None:
        """Put pieces back to the front."""
        kept = [(stream, piece) for stream, piece in pieces if piece]
        self._pieces.extendleft(reversed(kept))
        self._held += sum(len(piece) for _, piece in kept)

    async def write(self, data: bytes) -> None:
        """Send to standard input. Raises BrokenPipeError."""
        if self.ended or self._connection.fileno() < 0:
            raise BrokenPipeError
        try:
            await asyncio.get_running_loop().sock_sendall(self._connection, data)
        except OSError as error:
            raise BrokenPipeError from error

    def end_input(self) -> None:
        """Close standard input."""
        try:
            self._connection.shutdown(socket.SHUT_WR)
        except OSError:
            return

    async def close(self) -> None:
        """Let go. Idempotent."""
        self._reading.cancel()
        await asyncio.wait([self._reading])
        self._pieces.clear()
        self._connection.close()


class Door:
    """The way into one container."""

    def __init__(self, engine: Engine, container: str, threads: ThreadPoolExecutor) -> None:
        self.container = container
        self._engine = engine
        self._threads = threads

    async def begin(
        self,
        script: str,
        arguments: Sequence[str],
        mark: str,
        *,
        variables: Mapping[str, str],
        user: str | None = None,
        terminal: TerminalSize | None = None,
        given: bool = False,
    ) -> tuple[str, Stream, str]:
        """Run a script by the image's shell and return its number, its stream, and the word that it says after `mark`.

        Raises Invalid, NotRunning, Unavailable; Unsupported where the image has no shell.
        """
        words = [_SHELL, "-c", script, "sh", *arguments]
        number, stream = await self._start(words, variables, user, terminal=terminal, given=given)
        said, early = b"", list[tuple[int, bytes]]()
        wanted, ours = f"{mark}:".encode(), STDERR if terminal is None else STDOUT
        try:
            while (piece := await stream.read()) is not None:
                if piece[0] != ours:  # an engine mixes what came by two pipes anywhere
                    early.append(piece)
                    continue
                said += piece[1]
                before, found, rest = said.partition(wanted)
                word, line_end, more = rest.partition(b"\n")
                if found and line_end:
                    stream.unread([*early, (ours, more)])
                    return number, stream, word.strip().decode()
                said = said if found else before[-_SAID_BYTES:]
        except BaseException:
            await asyncio.shield(stream.close())
            raise
        await stream.close()
        said = b"".join(data for _, data in early)[-_SAID_BYTES:] + said
        raise await self.why_not(said.decode("utf-8", "replace").strip())

    async def open_shell(self, user: str | None) -> Stream:
        """Return a shell that takes commands, which ends when the connection does."""
        _, stream = await self._start([_SHELL], {}, user, terminal=None, given=True)
        return stream

    async def _start(
        self,
        words: Sequence[str],
        variables: Mapping[str, str],
        user: str | None,
        *,
        terminal: TerminalSize | None,
        given: bool,
    ) -> tuple[str, Stream]:
        asked: dict[str, Any] = {
            "AttachStdin": given or terminal is not None,
            "AttachStdout": True,
            "AttachStderr": True,
            "Tty": terminal is not None,
            "Env": [f"{name}={value}" for name, value in variables.items()],
            "Cmd": list(words),
            **({} if user is None else {"User": user}),
        }
        try:
            number, connection = await self.call(lambda: self._engine.execute(self.container, asked))
        except EngineError as error:
            raise await self.why_not(str(error)) from error
        except OSError as error:
            raise Unavailable(f"the container engine does not answer: {error}") from error
        return number, Stream(connection, raw=terminal is not None)

    async def why_not(self, said: str) -> Exception:
        """Say why nothing was started."""
        if not await self.runs():
            return NotRunning(f"the job does not run any more: {self.container}")
        lower = said.lower()
        if _SHELL in said and ("no such file" in lower or "not found" in lower):
            return Unsupported(
                f"the image has no shell ({_SHELL}); without one this server cannot reach into containers of an engine "
                "elsewhere: take an image with one, or let jobs run by executor.kind = oci"
            )
        return Invalid(f"the engine started nothing: {said[:2000] or 'it does not say why'}")

    async def runs(self) -> bool:
        """Say whether the container runs. Raises Unavailable."""
        try:
            found = await self.ask("GET", f"/containers/{self.container}/json")
        except EngineError as error:
            if error.status == 404:
                return False
            raise Unavailable(f"the container engine does not say whether the job runs: {error}") from error
        return bool(found["State"].get("Running"))

    async def code(self, number: str) -> int | None:
        """Return the exit code of a program once it ends; None when the engine knows nothing of it any more.

        Engines tell of the end by that of the output only, which some programs close long before.
        """
        pause = _LOOK_SECONDS
        while (found := await self.look(number)) is not None:
            if not found.get("Running"):
                return int(found.get("ExitCode") or 0)
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LOOK_SECONDS_MOST)
        return None

    async def look(self, number: str) -> Mapping[str, Any] | None:
        """Return what the engine says of a program; None when it knows nothing of it."""
        try:
            return await self.ask("GET", f"/exec/{number}/json")
        except (OSError, EngineError):
            return None

    async def resize(self, number: str, size: TerminalSize) -> None:
        """Change a terminal; nothing happens when its program is over."""
        query = {"h": str(size.rows), "w": str(size.columns)}
        try:
            await self.ask("POST", f"/exec/{number}/resize", query)
        except (OSError, EngineError):
            return

    async def ask(self, method: str, path: str, query: Mapping[str, str] | None = None) -> Any:
        """Ask the engine something. Raises OSError, EngineError."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._threads, lambda: self._engine.call(method, path, query=query, seconds=_SECONDS)
        )

    async def call(self, work: "Any") -> tuple[str, socket.socket]:
        """Have a thread connect; a connection that nobody waits for any more is closed."""
        made: Future[tuple[str, socket.socket]] = self._threads.submit(work)
        try:
            return await asyncio.wrap_future(made)
        except asyncio.CancelledError:
            made.add_done_callback(_close)
            raise


def _close(made: "Future[tuple[str, socket.socket]]") -> None:
    if not made.cancelled() and made.exception() is None:
        made.result()[1].close()
