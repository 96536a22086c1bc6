"""How the proxy reaches the protocol: it serves port 49983 of sandbox jobs in place of the job."""

import re
from socket import socket

from runstead.model.errors import Invalid, NotFound
from runstead.model.jobs import Job
from runstead.model.sandboxes import PORT
from runstead.sandbox.app import SandboxApp
from runstead.services.exposure import Gone, Onward, Visit
from runstead.services.sandboxes.activity import WHOLE
from runstead.services.sandboxes.sandboxes import Room, Sandboxes

_PROXIED = re.compile(r"/v1(?:/sandboxes/([0-9a-f]{1,64}))?/proxy/([^/?]*)(.*)", re.DOTALL)
_LAST_PORT = 65535
_OURS = frozenset({b"authorization", b"x-sandbox-token"})


class SandboxPort:
    """Serves the sandbox protocol, and ports inside of sandboxes through it."""

    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes
        self.app = SandboxApp(sandboxes)

    def serves(self, job: Job, port: int) -> bool:
        """Say whether this port of this job is served here."""
        return port == PORT and job.spec.sandbox is not None

    async def onward(self, visit: Visit, target: str, fields: list[tuple[bytes, bytes]]) -> Onward | None:
        """Say where in the sandbox a request goes on; None for the protocol's own.

        Raises NotFound for what is no port, Forbidden without the sandbox's token. That somebody reaches a port
        counts as a use of the sandbox when it begins.
        """
        proxied = _PROXIED.fullmatch(target)
        if proxied is None:
            return None
        sandbox_id, port_text, rest = proxied.groups()
        if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5):
            raise NotFound(f"a port is a number from 1 to {_LAST_PORT}, not {port_text[:20]!r}")
        port = int(port_text)
        if not 1 <= port <= _LAST_PORT:
            raise NotFound(f"a port is a number from 1 to {_LAST_PORT}, not {port}")
        token = _token(fields)
        entered = (
            self._sandboxes.dedicated(visit.job, token)
            if sandbox_id is None
            else self._sandboxes.pooled(visit.job, sandbox_id, token)
        )
        async with entered as room:
            pass
        return Onward(
            key=(visit.job.id, str(visit.job.attempt), sandbox_id or WHOLE, port_text),
            connect=lambda: _connect(room, port),
            target=rest if rest.startswith("/") else "/" + rest,
            without=_OURS,
        )


async def _connect(room: Room, port: int) -> socket:
    try:
        return await room.inside.connect(port)
    except (ConnectionRefusedError, FileNotFoundError):
        where = (
            f"port {port} of the sandbox; a server may listen on 127.0.0.1"
            if room.sandbox_id == WHOLE
            else f"the unix socket $SBX_PROXY_DIR/{port}.sock of the sandbox"
        )
        raise Gone(f"nothing listens on {where}", "not-listening") from None


def _token(fields: list[tuple[bytes, bytes]]) -> str | None:
    values = [value for name, value in fields if name.lower() == b"x-sandbox-token"]
    if len(values) > 1:
        raise Invalid("a request shows one X-Sandbox-Token, not several")
    return values[0].decode("latin-1") if values else None
