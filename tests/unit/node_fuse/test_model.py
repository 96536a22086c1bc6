"""Random programs do the same to a mount and to a plain folder: both, and then the bucket, are the same."""

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from node_fuse.conftest import Bucket, Node

OPERATIONS = int(os.environ.get("RUNSTEAD_FUSE_OPERATIONS", "600"))
SEEDS = range(*(int(part) for part in os.environ.get("RUNSTEAD_FUSE_SEEDS", "0 4").split()))
BETWEEN_DEATHS = max(60, OPERATIONS // 25)  # the keeper gives up what kills its daemon more than 30 times a minute
NAMES = ["a", "b", "c", "dd", "e.txt"]


class Walk:
    """One seeded sequence of operations, applied to two folders."""

    def __init__(self, seed: int, roots: tuple[Path, Path]) -> None:
        self.dice = random.Random(seed)
        self.roots = roots
        self.open: list[tuple[int, int]] = []
        self.done: list[str] = []

    def path(self) -> str:
        return "/".join(self.dice.choice(NAMES) for _ in range(self.dice.randint(1, 3)))

    def both(self, what: str, act: Callable[[Path], object]) -> None:
        self.done.append(what)
        results = [_outcome(act, root) for root in self.roots]
        assert results[0] == results[1], (what, self.done[-15:])

    def on_open(self, what: str, act: Callable[[int], object]) -> None:
        if self.open:
            number = self.dice.randrange(len(self.open))
            self.done.append(f"{what} #{number}")
            results = [_outcome(act, fd) for fd in self.open[number]]
            assert results[0] == results[1], (what, number, self.done[-15:])

    def step(self) -> None:
        dice, path, other = self.dice, self.path(), self.path()
        data = dice.randbytes(dice.choice([0, 1, 100, 5000, 70_000]))
        place, size = dice.randrange(100_000), dice.randrange(120_000)
        match dice.randrange(19):
            case 0 | 1:
                self.both(f"write {path} {len(data)}", lambda r: (r / path).write_bytes(data))
            case 2:
                self.both(f"append {path}", lambda r: _append(r / path, data))
            case 3 | 4:
                self.both(f"mkdir {path}", lambda r: (r / path).mkdir())
            case 5:
                self.both(f"unlink {path}", lambda r: (r / path).unlink())
            case 6:
                self.both(f"rmdir {path}", lambda r: (r / path).rmdir())
            case 7 | 8:
                self.both(f"rename {path} {other}", lambda r: os.rename(r / path, r / other))
            case 9:
                self.both(f"truncate {path} {size}", lambda r: os.truncate(r / path, size))
            case 10:
                self.both(f"read {path}", lambda r: (r / path).read_bytes())
            case 11:
                self.both(f"list {path}", lambda r: sorted(os.listdir(r / path)))
            case 12:
                self.both(f"stat {path}", lambda r: _shape(r / path))
            case 13:
                flags = dice.choice([os.O_RDWR, os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_CREAT | os.O_EXCL])
                flags |= dice.choice([0, 0, os.O_APPEND, os.O_TRUNC])
                self.open_both(path, flags)
            case 14 | 15:
                self.on_open(f"pwrite {len(data)} at {place}", lambda fd: os.pwrite(fd, data, place))
            case 16:
                self.on_open(f"pread at {place}", lambda fd: os.pread(fd, 50_000, place))
            case 17:
                self.on_open(f"ftruncate {size}", lambda fd: os.ftruncate(fd, size))
            case _:
                if self.open and dice.random() < 0.6:
                    for fd in self.open.pop(dice.randrange(len(self.open))):
                        os.close(fd)

    def open_both(self, path: str, flags: int) -> None:
        self.done.append(f"open {path} {flags:o}")
        results = [_outcome(lambda root: os.open(root / path, flags, 0o644), root) for root in self.roots]
        fds = [result[1] for result in results if result[0] == "ok"]
        if len(fds) == 2:
            self.open.append((int(str(fds[0])), int(str(fds[1]))))
        else:
            assert results[0] == results[1], (path, self.done[-15:])

    def close(self) -> None:
        for pair in self.open:
            for fd in pair:
                os.close(fd)
        self.open = []


def _outcome(act: Callable[..., object], on: object) -> tuple[str, object]:
    try:
        return "ok", act(on)
    except OSError as error:
        return "error", error.errno


def _append(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, data)
    os.close(fd)


def _shape(path: Path) -> tuple[bool, int]:
    found = path.stat()
    return path.is_dir(), 0 if path.is_dir() else found.st_size


def _tree(root: Path) -> dict[str, bytes | None]:
    return {p.relative_to(root).as_posix(): None if p.is_dir() else p.read_bytes() for p in root.rglob("*")}


def _files(tree: dict[str, bytes | None]) -> dict[str, bytes]:
    return {name: data for name, data in tree.items() if data is not None}


@pytest.mark.timeout(120 + OPERATIONS // 10)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("deaths", [False, True], ids=["", "with daemons that are killed"])
def test_a_mount_is_like_a_folder(node: Node, bucket: Bucket, tmp_path: Path, seed: int, deaths: bool) -> None:
    start = {f"{a}/{b}": random.Random(f"{seed}{a}{b}").randbytes(20_000) for a in ("a", "b") for b in ("a", "c")}
    bucket.put(start, tmp_path / "up")
    plain = tmp_path / "plain"
    for name, data in start.items():
        (plain / name).parent.mkdir(parents=True, exist_ok=True)
        (plain / name).write_bytes(data)
    mounted = node.mount(bucket, f"model{seed}")
    walk = Walk(seed, (plain, mounted))
    for number in range(OPERATIONS):
        walk.step()
        if deaths and number % BETWEEN_DEATHS == 59:
            os.kill(node.told()["pid"], signal.SIGKILL)
        if number % 150 == 149:
            assert _tree(plain) == _tree(mounted), walk.done[-30:]
        if number % 300 == 299:
            walk.close()
            node.flush(mounted)
            assert bucket.files() == _files(_tree(plain)), walk.done[-30:]
    walk.close()
    node.flush(mounted)
    assert bucket.files() == _files(_tree(plain))
    assert _tree(plain) == _tree(mounted)
    # A mount made anew has the same files.
    again = node.mount(bucket, f"again{seed}", read_only=True)
    assert _files(_tree(again)) == _files(_tree(plain))
    shutil.rmtree(plain)
