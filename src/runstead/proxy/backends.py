"""Connections into jobs: made when needed, kept for a moment afterwards."""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from socket import socket
from typing import Protocol, cast

Key = tuple[str, ...]
Connect = Callable[[], Awaitable[socket]]

# Shorter than what common servers wait for the next request (uvicorn and node: 5 s), so that they are rarely the ones
# who close: a request that crosses with a close is lost.
_IDLE_SECONDS = 4.0
_IDLE_PER_KEY = 64
_BUFFERED_BYTES = 256 * 1024


class User(Protocol):
    """Whoever a connection is in use by."""

    def from_job(self, data: bytes) -> None:
        """Take what the job sent."""
        ...

    def job_eof(self) -> bool:
        """The job sends no more. Return whether it may still be sent to."""
        ...

    def job_lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        ...

    def job_is_full(self, full: bool) -> None:
        """What was sent to the job waits to be read there, or no longer."""
        ...


class Backend(asyncio.Protocol):
    """One connection into a job."""

    def __init__(self, key: Key, forget: Callable[["Backend"], None]) -> None:
        self.key = key
        self.user: User | None = None
        self.used = False  # a request was answered on it before
        self.idle_since = 0.0
        self.transport = cast("asyncio.Transport", None)
        self._forget = forget

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(_BUFFERED_BYTES)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self.user is not None:
            self.user.from_job(data)
        else:  # an answer that nobody asked for
            self.transport.abort()

    def eof_received(self) -> bool:
        """See asyncio."""
        return self.user.job_eof() if self.user is not None else False

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._forget(self)
        if exc is not None:
            self._read_on()
        user, self.user = self.user, None
        if user is not None:
            user.job_lost(exc)

    def _read_on(self) -> None:
        """Read what was sent before a reset that a write met first: programs answer before they have read it all."""
        connection = self.transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            while self.user is not None and (data := os.read(connection.fileno(), _BUFFERED_BYTES)):
                self.user.from_job(data)

    def pause_writing(self) -> None:
        """See asyncio."""
        if self.user is not None:
            self.user.job_is_full(True)

    def resume_writing(self) -> None:
        """See asyncio."""
        if self.user is not None:
            self.user.job_is_full(False)

    def release(self) -> None:
        """End its use and the connection."""
        self.user = None
        self.transport.abort()


class Backends:
    """All connections into jobs that are not in use."""

    def __init__(self) -> None:
        self._idle: dict[Key, list[Backend]] = {}

    async def take(self, key: Key, connect: Connect, *, fresh: bool = False) -> Backend:
        """Return a connection that nobody uses: a kept one, unless a fresh one is wanted. Raises as `connect` does."""
        kept = self._idle.get(key)
        while kept and not fresh:
            backend = kept.pop()
            if not kept:
                del self._idle[key]
            if not backend.transport.is_closing():
                return backend
        made = await connect()
        try:
            _, backend = await asyncio.get_running_loop().create_connection(
                lambda: Backend(key, self._forget), sock=made
            )
        except BaseException:
            made.close()
            raise
        return backend

    async def open(self, made: socket, address: tuple[str, int]) -> Backend:
        """Return a connection to an address that is no job's, by a socket that is bound already. Raises OSError."""

        async def connect() -> socket:
            try:
                await asyncio.get_running_loop().sock_connect(made, address)
            except BaseException:
                made.close()
                raise
            return made

        return await self.take((), connect, fresh=True)

    def keep(self, backend: Backend) -> None:
        """Keep a connection for the next request."""
        backend.user = None
        backend.used = True
        kept = self._idle.setdefault(backend.key, [])
        if len(kept) >= _IDLE_PER_KEY or backend.transport.is_closing():
            backend.transport.abort()
            if not kept:
                del self._idle[backend.key]
            return
        backend.idle_since = asyncio.get_running_loop().time()
        backend.transport.resume_reading()
        kept.append(backend)

    def sweep(self) -> None:
        """Close what was not needed for some seconds."""
        before = asyncio.get_running_loop().time() - _IDLE_SECONDS
        for key, kept in list(self._idle.items()):
            old = [backend for backend in kept if backend.idle_since < before]
            kept[:] = [backend for backend in kept if backend.idle_since >= before]
            if not kept:
                del self._idle[key]
            for backend in old:
                backend.transport.abort()

    def close(self) -> None:
        """Close all of them."""
        for kept in self._idle.values():
            for backend in kept:
                backend.transport.abort()
        self._idle.clear()

    def _forget(self, backend: Backend) -> None:
        kept = self._idle.get(backend.key)
        if kept and backend in kept:
            kept.remove(backend)
            if not kept:
                del self._idle[backend.key]
