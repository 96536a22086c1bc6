"""Servers and clients for the tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from clients import VERSIONS, Client, Server, make_client


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("server") / "data", ("--stop-jobs-at-exit",)).start()
    yield started
    started.stop()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server that the test may kill."""
    started = Server(tmp_path / "data").start()
    yield started
    if started.process is not None and started.process.poll() is not None:
        started.flags = (*started.flags, "--stop-jobs-at-exit")
        started.start()
    started.stop()


@pytest.fixture(params=VERSIONS)
def client(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> Client:
    """Every supported line of the client, one after the other."""
    return make_client(request.param, server, tmp_path)


@pytest.fixture
def newest(server: Server, tmp_path: Path) -> Client:
    return make_client(VERSIONS[0], server, tmp_path)
