"""One port for http and https: the first byte of a connection tells which."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable

import structlog

log = structlog.get_logger()

_TLS_HANDSHAKE = b"\x16"
_ACCEPT_AT_ONCE = 64
_REST_SECONDS = 1.0
_SILENT_SECONDS = 30.0
_HANDSHAKE_SECONDS = 15.0


class Listener:
    """Accepts connections on one socket."""

    def __init__(
        self, listening: socket.socket, protocol: Callable[[], asyncio.Protocol], context: Callable[[], ssl.SSLContext]
    ) -> None:
        """Ask for `context` at each connection: certificates are renewed."""
        self._listening = listening
        self._protocol = protocol
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._silent: dict[socket.socket, float] = {}  # what has said nothing yet, oldest first
        self._joining: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        self._resume()
        self._sweep()

    def close(self) -> None:
        """Accept no more. What is being served goes on."""
        self._loop.remove_reader(self._listening)
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._silent):
            self._drop(connection)
        self._listening.close()

    def _resume(self) -> None:
        if self._listening.fileno() >= 0:
            self._loop.add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        for _ in range(_ACCEPT_AT_ONCE):
            try:
                connection, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no more files may be open: those that close make room
                log.error("connections cannot be accepted", error=str(error))
                self._loop.remove_reader(self._listening)
                self._loop.call_later(_REST_SECONDS, self._resume)
                return
            connection.setblocking(False)
            self._silent[connection] = self._loop.time()
            self._loop.add_reader(connection, self._spoke, connection)

    def _spoke(self, connection: socket.socket) -> None:
        try:
            first = connection.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            first = b""
        if not first:
            self._drop(connection)
            return
        self._loop.remove_reader(connection)
        self._silent.pop(connection, None)
        task = self._loop.create_task(self._join(connection, secure=first == _TLS_HANDSHAKE))
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)

    async def _join(self, connection: socket.socket, *, secure: bool) -> None:
        try:
            if secure:
                await self._loop.connect_accepted_socket(
                    self._protocol, connection, ssl=self._context(), ssl_handshake_timeout=_HANDSHAKE_SECONDS
                )
            else:
                await self._loop.connect_accepted_socket(self._protocol, connection)
        except (OSError, ValueError):  # a handshake that failed is nobody's news
            connection.close()

    def _sweep(self) -> None:
        before = self._loop.time() - _SILENT_SECONDS
        for connection, since in list(self._silent.items()):
            if since > before:
                break
            self._drop(connection)
        self._sweeper = self._loop.call_later(_REST_SECONDS, self._sweep)

    def _drop(self, connection: socket.socket) -> None:
        self._silent.pop(connection, None)
        with contextlib.suppress(OSError, ValueError):
            self._loop.remove_reader(connection)
        connection.close()
