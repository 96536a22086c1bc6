"""The sockets of a server, and the requests that come through them."""

import asyncio
import contextlib
import ipaddress
import resource
import socket
from functools import partial

import uvicorn

from runstead.api.bodies import BodyProtocol
from runstead.kit.loops import forever
from runstead.model.errors import Unavailable
from runstead.proxy.door import Door
from runstead.proxy.listening import Listener
from runstead.proxy.tls import ServerTls

BACKLOG = 2048
_CERTIFICATE_SECONDS = 2.0  # two looks at two files: nothing, against a client that meets an old certificate


class Connection(Door, BodyProtocol):
    """A connection of a client: requests for ports of jobs, and those for the server itself."""


def bind(host: str, port: int) -> socket.socket:
    """Listen. Raises Unavailable when the port cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        raise Unavailable(f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port") from error
    listener.setblocking(False)
    return listener


def covers(host: str, address: str) -> bool:
    """Say whether who listens at `host` is reached at `address` too."""
    if host in ("0.0.0.0", "::", "", address):  # noqa: S104
        return True
    try:
        return ipaddress.ip_address(host).is_loopback and ipaddress.ip_address(address).is_loopback
    except ValueError:
        return host == "localhost" and address.startswith("127.")


def open_many_files() -> None:
    """Let this process have as many connections as the machine allows it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # macOS: less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def run_http(http: uvicorn.Server, listeners: list[socket.socket], tls: ServerTls | None) -> None:
    """Serve without uvicorn's own signal handling: what a signal means is decided here."""
    config = http.config
    if not config.loaded:
        config.load()
    http.lifespan = config.lifespan_class(config)
    if tls is None:
        await http.startup(sockets=listeners)
        await http.main_loop()
        await http.shutdown(sockets=listeners)
        return
    await http.startup(sockets=[])
    protocol = partial(
        config.http_protocol_class, config=config, server_state=http.server_state, app_state=http.lifespan.state
    )
    doors = [Listener(one, protocol, tls.current) for one in listeners]
    refreshing = asyncio.create_task(forever("tls", partial(_refresh, tls)))
    await http.main_loop()
    for door in doors:
        door.close()
    refreshing.cancel()
    await http.shutdown(sockets=[])


async def _refresh(tls: ServerTls) -> None:
    while True:
        await asyncio.sleep(_CERTIFICATE_SECONDS)
        tls.refresh()
