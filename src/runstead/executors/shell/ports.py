"""Ports of a container that has no address for us: programs of its image are the far end of each connection."""

import asyncio
import contextlib
import ipaddress
import select
import socket
from collections.abc import Mapping, Sequence

from runstead.executors.shell import scripts
from runstead.executors.shell.door import STDERR, Door, Stream
from runstead.executors.shell.lanes import Lanes, Watch
from runstead.model.errors import Invalid, RunsteadError, Unsupported

NEEDS = "python3, socat, nc or perl"
_READ_BYTES = 1 << 16
_LISTENS = "0A"
_LOOK_SECONDS = 5.0


class Ports:
    """The ports of one attempt."""

    def __init__(self, door: Door, lanes: Lanes, watch: Watch) -> None:
        self._door = door
        self._lanes = lanes
        self._watch = watch
        self._tasks: set[asyncio.Task[None]] = set()

    async def connect(self, port: int, variables: Mapping[str, str]) -> socket.socket:
        """See Inside."""
        answer = await self._lanes.ask("cat", "/proc/net/tcp", "/proc/net/tcp6")
        for address in listening(answer.output.decode("ascii", "replace"), port):
            mark = await self._watch.mark()
            try:
                _, stream, word = await self._door.begin(
                    scripts.RELAY,
                    [address, str(port)],
                    mark,
                    variables={**variables, scripts.MARK: mark},
                    given=True,
                )
            except Invalid:  # it could not connect
                continue
            if word == "program":
                await stream.close()
                raise Unsupported(
                    f"ports of this job cannot be reached: its container is entered by the engine's API alone, and "
                    f"that needs {NEEDS} in the image"
                )
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            ours.setblocking(False)
            theirs.setblocking(False)
            self._tasks.add(task := asyncio.create_task(self._relay(stream, theirs, mark)))
            task.add_done_callback(self._tasks.discard)
            return ours
        raise ConnectionRefusedError(f"nothing listens on this port of the job: {port}")

    def close(self) -> None:
        """Cut all connections."""
        for task in self._tasks:
            task.cancel()

    async def _relay(self, stream: Stream, here: socket.socket, mark: str) -> None:
        """Pass on what comes from both sides until the inside has said all, or nobody is here any more."""
        inwards = asyncio.create_task(_inwards(here, stream))
        outwards = asyncio.create_task(_outwards(stream, here))
        try:
            while not outwards.done():
                await asyncio.wait([inwards, outwards], return_when=asyncio.FIRST_COMPLETED)
                if inwards.done() and not outwards.done():
                    if _is_closed(here):
                        break
                    await asyncio.wait([outwards], timeout=_LOOK_SECONDS)
        finally:
            over = stream.ended
            for task in (inwards, outwards):
                task.cancel()
            await asyncio.gather(inwards, outwards, return_exceptions=True)
            here.close()
            await asyncio.shield(stream.close())
            if not over:
                with contextlib.suppress(RunsteadError):
                    await asyncio.shield(self._watch.kill(mark))


async def _inwards(here: socket.socket, stream: Stream) -> None:
    loop = asyncio.get_running_loop()
    try:
        while data := await loop.sock_recv(here, _READ_BYTES):
            await stream.write(data)
    except OSError:
        return
    stream.end_input()


async def _outwards(stream: Stream, here: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while (piece := await stream.read()) is not None:
        if piece[0] != STDERR:
            try:
                await loop.sock_sendall(here, piece[1])
            except OSError:
                return


def _is_closed(here: socket.socket) -> bool:
    poll = select.poll()
    poll.register(here, 0)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


def listening(table: str, port: int) -> Sequence[str]:
    """Return the addresses that something listens on, in the tables /proc/net/tcp and tcp6, as one connects to them."""
    found: set[ipaddress.IPv4Address | ipaddress.IPv6Address] = set()
    for line in table.splitlines():
        words = line.split()
        if len(words) < 4 or words[3] != _LISTENS:
            continue
        host, _, number = words[1].partition(":")
        try:
            if int(number, 16) == port:
                found.add(_address(host))
        except ValueError:
            continue
    return [str(address) for address in sorted(found, key=lambda address: (address.version, not address.is_loopback))]


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Read an address as the kernel prints it: words of its own byte order (little-endian on all that is met)."""
    raw = bytes.fromhex(text)
    packed = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
    address = ipaddress.ip_address(packed)
    if address.is_unspecified:
        return ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
