"""Networks of jobs: one that nothing happened in is the next one of its owner, any other goes."""

import asyncio
import os
import socket
import subprocess
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

from runstead.executors.network import JobNetwork
from runstead.node import syscalls

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="networks of jobs need root")


@pytest.fixture
async def network(tmp_path: Path) -> AsyncGenerator[JobNetwork]:
    made = JobNetwork(os.urandom(4).hex())
    await made.open(tmp_path)
    yield made
    await made.close(remove=True)


@contextmanager
def job(path: str, packet_to: str | None = None) -> Generator[socket.socket]:
    """A socket that was made in a network namespace, and sent something."""
    made: list[socket.socket] = []

    def make() -> None:
        inside = os.open(path, os.O_RDONLY)
        syscalls.enter(inside, syscalls.CLONE_NEWNET)
        os.close(inside)
        made.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        if packet_to is not None:
            made[0].sendto(b"x", (packet_to, 9))

    thread = Thread(target=make)
    thread.start()
    thread.join()
    with made[0]:
        yield made[0]


async def claimed(network: JobNetwork, name: str, owner: str) -> tuple[str, str]:
    """A namespace in which the kernel has forgotten those sockets too that it was made with."""
    path, address = await network.claim(name, owner)
    looked = ["nsenter", f"--net={path}", "cat", "/proc/net/sockstat"]
    while b"sockets: used 0\n" not in (await asyncio.to_thread(subprocess.run, looked, capture_output=True)).stdout:
        await asyncio.sleep(0.01)
    return path, address


async def test_one_in_which_nothing_happened_is_the_owners_next(network: JobNetwork) -> None:
    first = await claimed(network, "job-1", "alice")
    await network.release("job-1", first[1])
    assert await network.claim("job-2", "bob") != first
    assert await network.claim("job-3", "alice") == first


@pytest.mark.parametrize("target", ["127.0.0.1", "outside"])
async def test_one_that_a_packet_went_through_goes(network: JobNetwork, target: str) -> None:
    first = await claimed(network, "job-1", "alice")
    with job(first[0], network.address if target == "outside" else target):
        pass
    await network.release("job-1", first[1])
    assert not Path(first[0]).exists()
    assert await network.claim("job-2", "alice") != first


async def test_one_of_which_somebody_holds_a_socket_goes(network: JobNetwork) -> None:
    first = await claimed(network, "job-1", "alice")
    with job(first[0]):
        await network.release("job-1", first[1])
    assert not Path(first[0]).exists()


async def test_one_that_was_confined_goes(network: JobNetwork) -> None:
    first = await claimed(network, "job-1", "alice")
    await network.confine("job-1", ["10.9.8.7"])
    await network.release("job-1", first[1])
    assert not Path(first[0]).exists()


async def test_the_next_server_knows_whose_they_are(network: JobNetwork, tmp_path: Path) -> None:
    first = await claimed(network, "job-1", "alice")
    await network.release("job-1", first[1])
    later = JobNetwork(network._folder.name.removeprefix("runstead-"))
    await later.open(tmp_path)
    try:
        assert first not in [await later.claim(f"bob-{number}", "bob") for number in range(8)]
        assert await later.claim("alice-1", "alice") == first
    finally:
        await later.close(remove=False)
