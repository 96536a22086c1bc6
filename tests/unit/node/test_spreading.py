"""Directories that come and go are kept apart where the file system can do that, and nothing fails where it cannot."""

import subprocess
from pathlib import Path

import pytest

from runstead.node import syscalls
from runstead.node.spreading import spread


def flags(folder: Path) -> str:
    done = subprocess.run(["lsattr", "-d", str(folder)], capture_output=True, text=True)
    return done.stdout.split(" ")[0] if done.returncode == 0 else ""


def test_a_directory_is_told_to_spread_what_is_in_it(tmp_path: Path) -> None:
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(tmp_path)], capture_output=True, text=True).stdout.strip()
    spread(str(tmp_path))
    spread(str(tmp_path))
    if kind != "ext2/ext3" or not (before := flags(tmp_path)):
        pytest.skip("there is no ext4 here")
    assert "T" in before
    (tmp_path / "below").mkdir()
    assert "T" not in flags(tmp_path / "below")


@pytest.mark.skipif(not syscalls.LINUX, reason="these are Linux's")
@pytest.mark.parametrize("folder", ["/proc", "/dev/shm"])  # file systems that have no such flag, or other flags
def test_nothing_happens_elsewhere(folder: str) -> None:
    spread(folder)


@pytest.mark.skipif(not syscalls.LINUX, reason="these are Linux's")
def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        spread(str(tmp_path / "missing"))
