"""Many processes that make, move and remove names in the same few folders, while others look at them."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from node_fuse.conftest import Bucket, Node
from runstead.node.fuse.device import is_mounted

OPERATIONS = int(os.environ.get("RUNSTEAD_FUSE_OPERATIONS", "3000")) // 6
PROCESSES = 4
EXPECTED = "(FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)"
STORM = f"""
import errno, os, random, sys
root, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
dice = random.Random(seed)
os.chdir(root)

def name():
    return "/".join(dice.choice("abcd") for _ in range(dice.randint(1, 3)))

def step():
    path, other = name(), name()
    match dice.randrange(10):
        case 0 | 1: os.mkdir(path)
        case 2 | 3:
            with open(path, "x") as file: file.write(path * dice.randrange(200))
        case 4: os.unlink(path)
        case 5: os.rmdir(path)
        case 6 | 7: os.rename(path, other)
        case 8: os.listdir(path)
        case 9:
            os.stat(path)
            with open(path, "r+") as file: file.write("changed")

for _ in range(count):
    try:
        step()
    except {EXPECTED}:
        pass
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EINVAL, errno.ESTALE, errno.EBUSY): raise
"""


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _differences(one: dict[str, bytes], other: dict[str, bytes]) -> dict[str, tuple[bytes | None, bytes | None]]:
    names = sorted(one.keys() | other.keys())
    return {name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)}


@pytest.mark.timeout(120 + OPERATIONS // 10)
@pytest.mark.parametrize("deaths", [0, 4], ids=["", "with daemons that are killed"])
def test_what_is_left_is_what_the_bucket_has(node: Node, bucket: Bucket, deaths: int) -> None:
    node.patience = 60  # the machine is busy, and that is no failure of the store
    node.new_provider()
    root = node.mount(bucket, f"storm{deaths}")
    storms = [
        subprocess.Popen([sys.executable, "-c", STORM, str(root), str(seed), str(OPERATIONS)])
        for seed in range(PROCESSES)
    ]
    for _ in range(deaths):
        time.sleep(random.Random(7).uniform(0.1, 0.5))
        os.kill(node.told()["pid"], 9)
    assert [storm.wait(100 + OPERATIONS // 20) for storm in storms] == [0] * PROCESSES
    assert is_mounted(str(root))
    here = tree(root)
    node.flush(root)
    there = bucket.files()
    assert _differences(here, there) == {}
    assert _differences(here, tree(root)) == {}
    again = node.mount(bucket, f"again{deaths}", read_only=True)
    assert tree(again) == here
