"""One file, thousands of random operations, every byte compared with a model in memory; then the bucket's bytes.

After fsx of Apple and the Linux Test Project. `RUNSTEAD_FUSE_OPERATIONS` sets how many.
"""

import contextlib
import mmap
import os
import random
import signal
from pathlib import Path

import pytest

from node_fuse.conftest import Bucket, Node

OPERATIONS = int(os.environ.get("RUNSTEAD_FUSE_OPERATIONS", "3000"))
LARGEST = 400_000


class Fsx:
    """The file and what it should be."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = path
        self.dice = random.Random(seed)
        self.model = bytearray()
        self.fds = [os.open(path, os.O_RDWR | os.O_CREAT, 0o644)]
        self.done: list[str] = []

    def step(self) -> None:
        dice = self.dice
        start, size = dice.randrange(LARGEST), dice.choice((1, 100, 4096, 20_000, 70_000))
        fd = dice.choice(self.fds)
        what = dice.choices(
            ("read", "write", "append", "truncate", "map", "mapwrite", "reopen", "sync", "reserve", "copy", "replace"),
            (20, 20, 6, 10, 8, 10, 10, 3, 4, 4, 1),
        )[0]
        self.done.append(f"{what} {start} {size} of {len(self.model)}")
        match what:
            case "read":
                assert os.pread(fd, size, start) == self.model[start : start + size], self.done[-15:]
            case "write":
                self.write(start, dice.randbytes(size), fd)
            case "append" if len(self.model) < LARGEST:
                self.append(dice.randbytes(size))
            case "truncate":
                os.ftruncate(fd, start) if dice.random() < 0.7 else os.truncate(self.path, start)
                self.resize(start)
            case "map" | "mapwrite" if len(self.model) > 1:
                self.map(fd, writes=what == "mapwrite")
            case "reopen":
                self.reopen()
            case "sync":
                os.fsync(fd)
            case "reserve":
                os.posix_fallocate(fd, start, size)
                self.resize(max(len(self.model), start + size))
            case "copy":
                self.copy(fd, start, size)
            case "replace":
                self.replace()
            case _:
                pass
        assert self.path.stat().st_size == len(self.model), self.done[-15:]

    def write(self, start: int, data: bytes, fd: int) -> None:
        assert os.pwrite(fd, data, start) == len(data)
        self.resize(max(len(self.model), start + len(data)))
        self.model[start : start + len(data)] = data

    def append(self, data: bytes) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, data)
        os.close(fd)
        self.model += data

    def resize(self, size: int) -> None:
        del self.model[size:]
        self.model += bytes(size - len(self.model))

    def map(self, fd: int, *, writes: bool) -> None:
        start = self.dice.randrange(len(self.model))
        end = min(len(self.model), start + 30_000)
        with mmap.mmap(fd, len(self.model)) as view:
            assert view[start:end] == self.model[start:end], self.done[-15:]
            if writes:
                data = self.dice.randbytes(end - start)
                view[start:end] = data
                self.model[start:end] = data

    def reopen(self) -> None:
        """Have one to three descriptors, and now and then none in between."""
        keep = self.dice.randrange(len(self.fds) + 1)
        for fd in self.fds[keep:]:
            os.close(fd)
        self.fds = self.fds[:keep]
        while len(self.fds) < self.dice.randint(1, 3):
            self.fds.append(os.open(self.path, os.O_RDWR))

    def copy(self, fd: int, start: int, size: int) -> None:
        source = self.dice.randrange(max(1, len(self.model)))
        if start < source + size and source < start + size:
            return  # the two would overlap
        data = self.model[source : source + size]
        done = 0
        while done < len(data):
            done += os.copy_file_range(fd, fd, len(data) - done, source + done, start + done)
        if data:
            self.resize(max(len(self.model), start + len(data)))
            self.model[start : start + len(data)] = data

    def replace(self) -> None:
        """As programs do that want all or nothing."""
        fresh = self.path.with_name("fresh")
        fresh.write_bytes(self.model)
        os.replace(fresh, self.path)
        for fd in self.fds:
            os.close(fd)
        self.fds = [os.open(self.path, os.O_RDWR)]

    def close(self) -> None:
        for fd in self.fds:
            with contextlib.suppress(OSError):
                os.close(fd)
        self.fds = []


@pytest.mark.parametrize("passthrough", [True, False], ids=["", "on an older kernel"])
def test_every_byte_is_the_one_that_was_written(node: Node, bucket: Bucket, *, passthrough: bool) -> None:
    if not passthrough:
        node.passthrough = False
        node.new_provider()
    root = node.mount(bucket, f"fsx{passthrough}")
    fsx = Fsx(root / "file", seed=int(passthrough))
    for number in range(1, OPERATIONS + 1):
        fsx.step()
        if number % 500 == 0:
            fsx.close()
            node.flush(root)
            assert bucket.read("file") == fsx.model, fsx.done[-15:]
            if number % max(1000, OPERATIONS // 20) < 500:  # a keeper gives up a mount whose daemons die all the time
                os.kill(node.told()["pid"], signal.SIGKILL)
            fsx.reopen()
    fsx.close()
    node.flush(root)
    assert bucket.read("file") == fsx.model
