"""Layers as directories: what overlayfs wants, what programs see, and nothing outside, whatever an archive says."""

import contextlib
import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry import Archive
from runstead.images.archive import Damaged, TarReader
from runstead.images.unpacking import Limits, TooBig, Unpacked, unpack

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="images can be unpacked only as root")
NO_LIMITS = Limits(1 << 40, 1 << 30)


@pytest.fixture(autouse=True)
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def unpacked(archive: Archive | bytes, into: Path, limits: Limits = NO_LIMITS) -> Unpacked:
    stream = io.BytesIO(archive if isinstance(archive, bytes) else archive.bytes())
    into.mkdir(exist_ok=True)
    return unpack(TarReader(lambda: stream.read(5000)), str(into), limits, lambda done: None)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def is_whiteout(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(path: Path) -> bool:
    try:
        return os.getxattr(path, "trusted.overlay.opaque") == b"y"
    except OSError:
        return False


def test_files_are_as_the_archive_says(tmp_path: Path) -> None:
    capability = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
    archive = (
        Archive()
        .folder("./", 0o711, uid=5)
        .folder("bin", 0o2755, gid=7, mtime=1000)
        .add("bin/su", b"program", mode=0o4755, uid=0, gid=3, mtime=123)
        .add(
            "bin/ping", b"x", mode=0o755, pax_headers={"SCHILY.xattr.security.capability": capability.decode("latin-1")}
        )
        .hard("bin/same", "bin/su")
        .link("sh", "/bin/su", uid=9, mtime=77)
        .add("pipe", type=tarfile.FIFOTYPE, mode=0o600, uid=4)
        .add("a/b/c", b"in a folder that nobody named", uid=65_535, gid=65_535, mode=0o640)
    )
    raw = archive.bytes()
    done = unpacked(
        raw.replace(b"capability=" + capability.decode("latin-1").encode(), b"capability=" + capability), tmp_path / "l"
    )
    root = tmp_path / "l"
    assert (mode_of(root), root.stat().st_uid) == (0o711, 5)
    assert (mode_of(root / "bin"), (root / "bin").stat().st_gid, (root / "bin").stat().st_mtime) == (0o2755, 7, 1000)
    su = (root / "bin/su").stat()
    assert (mode_of(root / "bin/su"), su.st_gid, su.st_mtime, su.st_nlink) == (0o4755, 3, 123, 2)
    assert (root / "bin/same").read_bytes() == b"program"
    assert (root / "sh").readlink() == Path("/bin/su")
    assert ((root / "sh").lstat().st_uid, (root / "sh").lstat().st_mtime) == (9, 77)
    assert stat.S_ISFIFO((root / "pipe").lstat().st_mode)
    assert (root / "pipe").lstat().st_uid == 4
    assert ((root / "a/b/c").stat().st_uid, mode_of(root / "a/b/c"), mode_of(root / "a/b")) == (65_535, 0o640, 0o755)
    assert (root / "bin/ping").stat().st_gid == 0  # not of its folder, whose bit came later
    assert done.bytes == 7 + 1 + 29


def test_capabilities_of_files_are_kept(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "ping").write_bytes(b"x")
    value = bytes.fromhex("0100000200200000000000000000000000000000")
    os.setxattr(source / "ping", "security.capability", value)
    os.setxattr(source / "ping", "user.note", b"\0\n=")
    command = ["tar", "--format=pax", "--xattrs", "--xattrs-include=*", "-C", str(source), "-cf", "-", "ping"]
    unpacked(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout, tmp_path / "l")
    assert os.getxattr(tmp_path / "l/ping", "security.capability") == value
    assert os.getxattr(tmp_path / "l/ping", "user.note") == b"\0\n="


def test_an_archive_does_not_steer_the_overlay(tmp_path: Path) -> None:
    names = ("trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.overlay.metacopy", "security.selinux")
    pax = {f"SCHILY.xattr.{name}": "/etc" for name in names}
    unpacked(Archive().folder("a", pax_headers=pax).add("a/b", b"x", pax_headers=pax), tmp_path / "l")
    assert os.listxattr(tmp_path / "l/a") == os.listxattr(tmp_path / "l/a/b") == []


def test_devices_are_left_out(tmp_path: Path) -> None:
    archive = Archive()
    for number, kind in enumerate((tarfile.CHRTYPE, tarfile.BLKTYPE)):
        archive.add(f"dev/{number}", type=kind, devmajor=1, devminor=3).add(f"dev/zero{number}", type=kind)
    assert unpacked(archive.add("after", b"x"), tmp_path / "l").devices == 4
    assert list((tmp_path / "l/dev").iterdir()) == []
    assert (tmp_path / "l/after").exists()


def test_whiteouts_and_opaque_directories(tmp_path: Path) -> None:
    archive = (
        Archive()
        .add("a/.wh.gone")
        .folder("opaque")
        .add("opaque/.wh..wh..opq")
        .add("opaque/new", b"x")
        .add("late/.wh..wh..opq")
        .folder("late")
        .folder("both")
        .add(".wh.both")
        .add(".wh.then")
        .folder("then")
        .add("replaced", b"new")
        .add(".wh.replaced")
        .add(".wh..wh.plnk")
    )
    unpacked(archive, tmp_path / "l")
    root = tmp_path / "l"
    assert is_whiteout(root / "a/gone")
    assert is_opaque(root / "opaque")
    assert (root / "opaque/new").exists()
    assert is_opaque(root / "late")
    assert is_opaque(root / "both")
    assert is_opaque(root / "then")
    assert not is_opaque(root / "a")
    assert (root / "replaced").read_bytes() == b"new"
    assert not [path for path in root.rglob("*") if path.name.startswith(".wh.")]


def test_layers_stack_as_they_should(tmp_path: Path) -> None:
    """What the kernel makes of two layers is what the second's archive says of the first."""
    lower = Archive().add("f", b"1").add("d/x", b"1").add("d/y", b"1").add("e/x", b"1").add("gone", b"1").folder("t")
    upper = (
        Archive().add(".wh.gone").add("d/.wh.x").add("e/.wh..wh..opq").add("e/z", b"2").add("f", b"2").add("t", b"file")
    )
    unpacked(lower, tmp_path / "1")
    unpacked(upper, tmp_path / "2")
    merged = tmp_path / "merged"
    merged.mkdir()
    options = f"lowerdir={tmp_path}/2:{tmp_path}/1"
    mounted = subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, merged], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no overlay can be mounted here: {mounted.stderr}")
    try:
        found = {str(path.relative_to(merged)): path.is_file() and path.read_bytes() for path in merged.rglob("*")}
    finally:
        subprocess.run(["umount", merged], check=True)
    assert found == {"f": b"2", "d": False, "d/y": b"1", "e": False, "e/z": b"2", "t": b"file"}


def test_the_last_of_a_name_counts(tmp_path: Path) -> None:
    archive = (
        Archive()
        .add("a", b"old")
        .hard("b", "a")
        .add("a", b"new")
        .folder("d", 0o700)
        .add("d/below", b"x")
        .add("d", b"a file now")
        .link("l", "a")
        .folder("l", 0o750)
        .add("l/x", b"in a folder")
        .folder("p", 0o700)
        .folder("p", 0o711)
        .add("p/x", b"")
    )
    unpacked(archive, tmp_path / "l")
    root = tmp_path / "l"
    assert ((root / "a").read_bytes(), (root / "b").read_bytes()) == (b"new", b"old")
    assert (root / "d").read_bytes() == b"a file now"
    assert (root / "l/x").read_bytes() == b"in a folder"
    assert (mode_of(root / "l"), mode_of(root / "p")) == (0o750, 0o711)


@pytest.mark.parametrize(
    "archive",
    [
        Archive().add("../out", b"x"),
        Archive().add("a/../../out", b"x"),
        Archive().hard("a", "../out"),
        Archive().hard("a", "/../../out"),
        Archive().add("x/.wh..."),
        Archive().add("x/.wh.."),
        Archive().add("/".join("d" * 600), b"x"),
        Archive().link("a", ""),
        Archive().add("a", type=b"Z"),
        Archive().add("a", uid=2**33),
        Archive().add("a\0b", pax_headers={"path": "a\0b"}),
        Archive().folder("d").hard("a", "d"),
        Archive().hard("a", "nothing"),
        Archive().link("a", "nothing").add("a/b", b"x"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, archive: Archive) -> None:
    with pytest.raises(Damaged):
        unpacked(archive, tmp_path / "l")
    assert not (tmp_path / "out").exists()


def test_links_lead_nowhere_outside(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("host")
    up = "../" * 20 + str(tmp_path / "out").lstrip("/")
    for number, target in enumerate((str(tmp_path / "out"), up)):
        archive = (
            Archive()
            .folder(str(tmp_path / "out").lstrip("/"))
            .link("way", target)
            .add("way/file", b"job")
            .add("way/new", b"job")
            .add("way/.wh.file2")
            .folder("way/folder", 0o777)
        )
        into = tmp_path / f"l{number}"
        unpacked(archive, into)
        # The link was followed as a container would: to a path inside.
        inside = into / str(tmp_path / "out").lstrip("/")
        assert (inside / "new").read_bytes() == b"job"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]
    assert (tmp_path / "out" / "file").read_text() == "host"


def test_a_link_to_what_is_outside_is_no_hard_link_to_it(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("host")
    archive = Archive().link("way", str(tmp_path)).hard("stolen", "way/secret")
    with pytest.raises(Damaged, match="leads to nothing"):
        unpacked(archive, tmp_path / "l")
    archive = Archive().link("way", str(tmp_path / "secret")).hard("stolen", "way").add("way", b"overwritten")
    unpacked(archive, tmp_path / "l2")
    assert (tmp_path / "secret").read_text() == "host"


def test_links_that_go_round_end(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        unpacked(Archive().link("a", "b").link("b", "a").add("a/x", b""), tmp_path / "l")


def test_bounds(tmp_path: Path) -> None:
    with pytest.raises(TooBig, match="files"):
        unpacked(Archive().add("a").add("b").add("c"), tmp_path / "1", Limits(1000, 2))
    with pytest.raises(TooBig, match="bytes"):
        unpacked(Archive().add("a", b"x" * 600).add("b", b"x" * 600), tmp_path / "2", Limits(1000, 20))
    assert not (tmp_path / "2/b").exists()


def test_many_directories_need_few_descriptors(tmp_path: Path) -> None:
    archive = Archive()
    for number in range(1500):
        archive.add(f"{number}/file", b"x").hard(f"{number}/same", f"{max(0, number - 700)}/file")
    before = len(os.listdir("/proc/self/fd"))
    unpacked(archive, tmp_path / "l")
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(list((tmp_path / "l").iterdir())) == 1500


PARTS = st.sampled_from(["a", "b", "..", ".", "", "c" * 30, ".wh.a", ".wh..wh..opq", "link"])
PATHS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
TARGETS = st.one_of(PATHS, st.sampled_from(["/", "/etc", "../..", "/proc/self/root", "/dev", "link"]))


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(PATHS, KINDS, TARGETS), max_size=12))
def test_nothing_is_made_outside(tmp_path: Path, files: list[tuple[str, bytes, str]]) -> None:
    house = tmp_path / "house"
    shutil.rmtree(house, ignore_errors=True)
    layer = house / "layer"
    layer.mkdir(parents=True)
    archive = Archive()
    for name, kind, target in files:
        content = b"content" if kind == tarfile.REGTYPE else b""
        archive.add(name, content, type=kind, linkname=target if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else "")
    with contextlib.suppress(Damaged, OSError):
        unpacked(archive, layer)
    assert list(house.iterdir()) == [layer]
