"""What the next daemon reads of the one before it."""

import os
from pathlib import Path

import pytest

from runstead.node.fuse.nodelog import NodeLog


def test_what_is_written_together_is_read_one_by_one(tmp_path: Path) -> None:
    log = NodeLog(str(tmp_path / "log"))
    log.start()
    log.write("k", 1)
    with log.together():
        log.write("k", 2)
        log.write("k", 3)
    with log.together():
        pass
    log.write("k", 4)
    assert list(log.read()) == [("k", 1), ("k", 2), ("k", 3), ("k", 4)]
    log.close()


def test_a_full_disk_leaves_whole_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = NodeLog(str(tmp_path / "log"))
    log.start()
    log.write("k", 1)
    write = os.write

    def short(fd: int, data: bytes) -> int:
        return write(fd, data[:7])

    with monkeypatch.context() as full:
        full.setattr(os, "write", short)
        log.write("k", 2)
    log.write("k", 3)
    assert list(log.read()) == [("k", 1), ("k", 3)]
    log.close()
