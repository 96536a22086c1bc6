"""Copies of what somebody goes on changing: nothing from elsewhere gets in, and nothing that stays is missing."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runstead.node import copying, removal


@pytest.fixture
def source(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "source").mkdir()
    opened = os.open(tmp_path / "source", os.O_RDONLY | os.O_DIRECTORY)
    yield opened
    os.close(opened)


def test_all_kinds_of_entries(tmp_path: Path, source: int) -> None:
    top, copy = tmp_path / "source", tmp_path / "copy"
    (top / "empty").mkdir(mode=0o700)
    (top / "folder").mkdir()
    (top / "folder" / "file").write_bytes(b"x" * 100_000)
    os.link(top / "folder" / "file", top / "linked")
    (top / "folder" / "file").chmod(0o640)
    os.setxattr(top / "folder" / "file", "user.note", b"n")
    os.utime(top / "folder" / "file", ns=(1, 2_000_000_003))
    (top / "link").symlink_to("folder")
    (top / "away").symlink_to("/etc")
    os.mkfifo(top / "fifo", 0o602)
    with (top / "sparse").open("wb") as file:
        file.seek(1 << 30)
        file.write(b"end")
    top.chmod(0o2751)
    copying.copy_folder(source, str(copy))
    assert {one.name for one in copy.iterdir()} == {"empty", "folder", "linked", "link", "away", "fifo", "sparse"}
    file = copy / "folder" / "file"
    assert file.read_bytes() == b"x" * 100_000
    assert file.samefile(copy / "linked") and file.stat().st_nlink == 2
    assert (stat.S_IMODE(file.stat().st_mode), file.stat().st_mtime_ns) == (0o640, 2_000_000_003)
    assert os.getxattr(file, "user.note") == b"n"
    assert [os.readlink(copy / name) for name in ("link", "away")] == ["folder", "/etc"]
    assert stat.S_ISFIFO((copy / "fifo").stat().st_mode)
    sparse = (copy / "sparse").stat()
    assert (sparse.st_size, sparse.st_blocks < 1000) == ((1 << 30) + 3, True)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o2751


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices and gives files away")
def test_what_only_root_copies(tmp_path: Path, source: int) -> None:
    top, copy = tmp_path / "source", tmp_path / "copy"
    os.mknod(top / "gone", stat.S_IFCHR, os.makedev(0, 0))
    os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (top / "theirs").write_text("x")
    os.chown(top / "theirs", 70001, 70002)
    (top / "theirs").chmod(0o4000)
    (top / "opaque").mkdir()
    os.setxattr(top / "opaque", "trusted.overlay.opaque", b"y")
    (top / "other").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", top / "other"], check=True)
    try:
        (top / "other" / "file").write_text("x")
        copying.copy_folder(source, str(copy))
    finally:
        subprocess.run(["umount", top / "other"], check=True)
    assert {one.name for one in copy.iterdir()} == {"gone", "theirs", "opaque", "other"}
    status = (copy / "theirs").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (70001, 70002, 0o4000)
    assert stat.S_ISCHR((copy / "gone").stat().st_mode) and (copy / "gone").stat().st_rdev == 0
    assert os.getxattr(copy / "opaque", "trusted.overlay.opaque") == b"y"
    assert list((copy / "other").iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "file", "fifo", "nothing"])
def test_what_changes_after_it_was_looked_at_leads_nowhere(
    tmp_path: Path, source: int, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    top, secret = tmp_path / "source", tmp_path / "secret"
    (secret / "inner").mkdir(parents=True)
    for place in (secret, secret / "inner"):
        (place / "file").write_text("secret")
    for name in ("folder", "kept"):
        (top / name / "inner").mkdir(parents=True)
        (top / name / "inner" / "file").write_text("mine")
    (top / "file").write_text("mine")
    look = os.stat

    def swap(name: str, **where: Any) -> os.stat_result:
        status = look(name, **where)
        if name == "folder" and kind == "folder":
            (top / "folder").rename(top / "aside")
            (top / "folder").symlink_to(secret)
        elif name == "file" and kind != "folder" and (top / "file").is_file():
            (top / "file").unlink()
            if kind == "file":
                (top / "file").symlink_to(secret / "file")
            elif kind == "fifo":
                os.mkfifo(top / "file")
        return status

    monkeypatch.setattr(os, "stat", swap)
    copying.copy_folder(source, str(tmp_path / "copy"))
    monkeypatch.undo()
    found = [Path(folder, name) for folder, _, names in os.walk(tmp_path / "copy") for name in names]
    assert {path.read_text() for path in found if path.is_file() and not path.is_symlink()} == {"mine"}
    assert (tmp_path / "copy" / "kept" / "inner" / "file").read_text() == "mine"


def test_a_file_that_grows_for_ever_ends(tmp_path: Path, source: int) -> None:
    path = tmp_path / "source" / "log"
    path.write_bytes(b"x" * 200_000)
    whole = os.fstat

    def grown(fd: int) -> os.stat_result:
        status = whole(fd)
        with path.open("ab") as file:
            file.write(b"y" * 100_000)
        return status

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fstat", grown)
        copying.copy_folder(source, str(tmp_path / "copy"))
    copied = (tmp_path / "copy" / "log").read_bytes()
    assert copied.startswith(b"x" * 200_000) and len(copied) < path.stat().st_size


def test_nesting_without_end_is_refused(tmp_path: Path, source: int) -> None:
    here = os.dup(source)
    for _ in range(1100):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    with pytest.raises(copying.TooMuch):
        copying.copy_folder(source, str(tmp_path / "few"), 500)
    code = f"from runstead.node.copying import main; main('{source}', {str(tmp_path / 'copy')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, pass_fds=[source])
    assert done.returncode == 1 and "nested deeper" in done.stderr and done.stderr.count("\n") == 1
    for name in ("few", "copy", "source"):
        removal.delete_tree(str(tmp_path / name))


def test_more_than_was_wanted(tmp_path: Path, source: int) -> None:
    for number in range(11):
        (tmp_path / "source" / str(number)).write_text("x")
    with pytest.raises(copying.TooMuch):
        copying.copy_folder(source, str(tmp_path / "ten"), 10)
    copying.copy_folder(source, str(tmp_path / "eleven"), 11)
    assert len(list((tmp_path / "eleven").iterdir())) == 11


def test_a_directory_of_very_many_names_is_not_read_at_once(
    tmp_path: Path, source: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "source" / "many").mkdir()
    for number in range(300):
        (tmp_path / "source" / "many" / f"{number:0200}").touch()
    monkeypatch.setattr(copying, "_LISTED_BYTES", (tmp_path / "source").stat().st_size)
    listed: list[int] = []
    names = os.listdir
    monkeypatch.setattr(os, "listdir", lambda place: listed.append(place) or names(place))
    with pytest.raises(copying.TooMuch):
        copying.copy_folder(source, str(tmp_path / "copy"), 500)
    assert len(listed) == 1
    copying.copy_folder(source, str(tmp_path / "whole"))
    assert len(names(tmp_path / "whole" / "many")) == 300


def test_what_is_there_stays(tmp_path: Path, source: int) -> None:
    for name in ("both", "theirs", "not"):
        (tmp_path / "source" / name).write_text("theirs")
    (tmp_path / "target").mkdir(mode=0o711)
    (tmp_path / "target" / "both").write_text("mine")
    copying.copy_missing(source, str(tmp_path / "target"), "not")
    found = {one.name: one.read_text() for one in (tmp_path / "target").iterdir()}
    assert found == {"both": "mine", "theirs": "theirs"}
    assert stat.S_IMODE((tmp_path / "target").stat().st_mode) == 0o711
