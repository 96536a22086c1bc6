"""Bytes both ways, untouched, until one side closes: what follows an upgrade or a CONNECT."""

import asyncio

from runstead.proxy.backends import Backend


class Tunnel:
    """Joins a client's connection with one into a job."""

    lasts = True

    def __init__(self, client: asyncio.Transport, backend: Backend) -> None:
        self._client = client
        self._backend = backend
        self.active_at = asyncio.get_running_loop().time()
        backend.user = self

    def from_client(self, data: bytes) -> None:
        """Take what the client sent."""
        self._backend.transport.write(data)

    def from_job(self, data: bytes) -> None:
        """See backends.User."""
        self._client.write(data)

    def client_eof(self) -> bool:
        """The client sends no more. Return whether it may still be sent to."""
        return _end(self._backend.transport)

    def job_eof(self) -> bool:
        """See backends.User."""
        return _end(self._client)

    def client_lost(self) -> None:
        """The client's connection is gone; what it sent is still delivered."""
        self._backend.user = None
        self._backend.transport.close()

    def job_lost(self, error: Exception | None) -> None:
        """See backends.User."""
        if error is None:
            self._client.close()
        else:
            self._client.abort()

    def client_is_full(self, full: bool) -> None:
        """What was sent to the client waits to be read there, or no longer."""
        _hold(self._backend.transport, full)

    def job_is_full(self, full: bool) -> None:
        """See backends.User."""
        _hold(self._client, full)

    def abort(self) -> None:
        """End it at once."""
        self._client.abort()

    def finish(self) -> None:
        """The server stops."""
        self._client.close()


def _end(transport: asyncio.Transport) -> bool:
    """Pass the end of one direction on; where that is not possible, end both."""
    if transport.is_closing() or not transport.can_write_eof():
        return False
    transport.write_eof()
    return True


def _hold(transport: asyncio.Transport, hold: bool) -> None:
    if not transport.is_closing():
        if hold:
            transport.pause_reading()
        else:
            transport.resume_reading()
