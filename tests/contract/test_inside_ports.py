"""What every executor promises about ports of running attempts."""

import asyncio
import socket

import pytest

from contract.insides import Room, enter, room, site
from runstead.model.errors import Unsupported

__all__ = ["room", "site"]


_SERVER = (
    "import socket, sys\nfamily = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET\n"
    "s = socket.socket(family); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
    "s.bind((sys.argv[1], int(sys.argv[2]))); s.listen(100)\nprint(s.getsockname()[1], flush=True)\n"
    "while True: c, _ = s.accept(); c.sendall(c.recv(100).upper()); c.close()"
)


async def ask(room: Room, port: int, word: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    with await room.inside.connect(port) as connection:
        assert connection.type == socket.SOCK_STREAM
        assert not connection.getblocking()
        await loop.sock_sendall(connection, word)
        return await loop.sock_recv(connection, 100)


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::", "own"])
async def test_ports_are_reached_on_any_address(room: Room, address: str) -> None:
    if not room.site.capabilities.ports:
        with pytest.raises(Unsupported):
            await room.inside.connect(80)
        pytest.skip("no ports here")
    if address == "own":
        if room.handle.data["address"] is None or not room.site.capabilities.private_network:
            pytest.skip("no address of its own")
        address = str(room.handle.data["address"])
    async with room.running("python3", "-c", _SERVER, address, "0") as server:
        port = int((await server.read()).data)
        assert await ask(room, port, b"hello") == b"HELLO"
        assert await asyncio.gather(*(ask(room, port, b"%d" % number) for number in range(50))) == [
            b"%d" % number for number in range(50)
        ]
    with pytest.raises(ConnectionRefusedError):
        await room.inside.connect(port)


async def test_ports_of_the_machine_and_of_other_jobs_are_not_reached(room: Room) -> None:
    if not room.site.capabilities.ports:
        pytest.skip("no ports here")
    other = await enter(room.site)
    async with other.running("python3", "-c", _SERVER, "127.0.0.1", "0") as server:
        port = int((await server.read()).data)
        assert await ask(other, port, b"x") == b"X"
        with pytest.raises(ConnectionRefusedError):
            await room.inside.connect(port)
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::")):
        with socket.socket(family) as mine:
            mine.bind((address, 0))
            mine.listen()
            with pytest.raises(ConnectionRefusedError):
                await room.inside.connect(mine.getsockname()[1])
