"""The keeper holds a file descriptor for each mount, and there may be many."""

import fcntl
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from runstead.node import framing
from runstead.node.fuse.keeper import Keeper

_MOST_OF_SELECT = 1024


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard <= 2 * _MOST_OF_SELECT:
        pytest.skip("no process may have so many open files here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * _MOST_OF_SELECT), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
def test_a_daemon_is_heard_on_any_file_descriptor(tmp_path: Path) -> None:
    with socket.socket() as listener:
        keeper = Keeper(str(tmp_path), {}, listener)
        low, theirs = socket.socketpair()
        with low, theirs, socket.socket(fileno=fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, _MOST_OF_SELECT)) as ours:
            assert ours.fileno() >= _MOST_OF_SELECT
            mount = os.open("/dev/null", os.O_RDONLY)
            framing.send(theirs, {"op": "hold", "order": {"path": "/somewhere"}}, [mount])
            assert keeper._listen(ours)
            [(order, held)] = keeper._held.values()
            assert order == {"path": "/somewhere"}
            assert os.path.sameopenfile(held, mount)
            framing.send(theirs, {"op": "drop", "path": "/somewhere"})
            assert keeper._listen(ours)
            assert not keeper._held
            os.close(mount)
            theirs.shutdown(socket.SHUT_RDWR)
            assert not keeper._listen(ours)
