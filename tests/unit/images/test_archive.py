"""Archives that Python's own module and GNU tar wrote, and such as nobody would write."""

import io
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry import Archive
from runstead.images import archive as tar
from runstead.images.archive import Damaged, TarReader


def pieces(data: bytes, size: int = 1 << 16) -> Callable[[], bytes]:
    stream = io.BytesIO(data)
    return lambda: stream.read(size)


def members(data: bytes, size: int = 1 << 16) -> Iterator[tuple[tar.Entry, bytes]]:
    reader = TarReader(pieces(data, size))
    while (entry := reader.next()) is not None:
        yield entry, b"".join(bytes(part) for part in reader.content())


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=70)
PATHS = st.lists(NAMES, min_size=1, max_size=5).map("/".join)
CONTENTS = st.binary(max_size=2000)
NUMBERS = st.one_of(st.integers(0, 0o7777777), st.integers(0, 2**40))


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    st.lists(st.tuples(PATHS, CONTENTS, NUMBERS, st.integers(0, 0o7777), st.integers(0, 2**33)), max_size=8),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.integers(1, 3000),
)
def test_what_was_written_is_read(files: list[tuple[str, bytes, int, int, int]], form: int, size: int) -> None:
    archive = Archive()
    for name, content, number, mode, mtime in files:
        archive.add(name, content, uid=number, gid=number, mode=mode, mtime=mtime)
    found = [
        (entry.name.decode(), content, entry.uid, entry.mode, entry.mtime_ns // 10**9)
        for entry, content in members(archive.bytes(form), size)
    ]
    # The writer's own business: it takes a slash from the end of a name.
    assert found == [(name, content, number, mode, mtime) for name, content, number, mode, mtime in files]


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar", "posix", "v7"])
def test_what_gnu_tar_writes(tmp_path: Path, form: str) -> None:
    root = tmp_path / "root"
    deep = root / "a" / ("b" * 60)
    deep.mkdir(parents=True)
    (deep / "file").write_bytes(b"x" * 1000)
    (root / "link").symlink_to("a/" + "b" * 60)
    (deep / "hard").hardlink_to(deep / "file")
    if form in ("gnu", "pax", "posix"):
        (root / ("long" * 60)).write_bytes(b"")
        (root / "to long").symlink_to("y" * 300)
    command = ["tar", f"--format={form}", "-C", str(root), "-cf", "-", "."]
    data = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    found = {entry.name.rstrip(b"/"): (entry.kind, entry.link, content) for entry, content in members(data, 777)}
    with tarfile.open(fileobj=io.BytesIO(data)) as peer:
        wanted = {one.name: one for one in peer}
    assert {name.decode() for name in found} == set(wanted)
    for name, (kind, link, content) in found.items():
        one = wanted[name.decode()]
        assert one.type == kind or (one.isreg() and kind == tar.REGULAR)
        assert one.linkname == link.decode()
        assert one.size == len(content)


def test_what_extended_headers_say_comes_first() -> None:
    pax = {"path": "ä" * 200, "linkpath": "z" * 300, "mtime": "12.5", "SCHILY.xattr.user.a": "1\n2"}
    data = Archive().link("short", "other", pax_headers=pax).bytes()
    [(entry, _)] = members(data)
    assert entry.name.decode() == "ä" * 200
    assert entry.link == b"z" * 300
    assert entry.mtime_ns == 12_500_000_000
    assert entry.xattrs == {b"user.a": b"1\n2"}


def test_a_global_header_holds_until_the_end() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", pax_headers={"comment": "of a commit"}) as file:
        for name in ("a", "b"):
            file.addfile(tarfile.TarInfo(name))
    assert [entry.name for entry, _ in members(out.getvalue())] == [b"a", b"b"]


def test_content_that_nobody_read_is_skipped() -> None:
    data = Archive().add("a", b"x" * 100_000).add("b", b"y").bytes()
    reader = TarReader(pieces(data, 1000))
    assert reader.next() is not None
    entry = reader.next()
    assert entry is not None
    assert (entry.name, data[reader.offset : reader.offset + 1]) == (b"b", b"y")


@pytest.mark.parametrize("at", [124, 136, 108, 148, 0, 257])
def test_a_damaged_header_is_found(at: int) -> None:
    data = bytearray(Archive().add("a", b"x").bytes(tarfile.USTAR_FORMAT))
    data[at] ^= 0x41
    with pytest.raises(Damaged):
        list(members(bytes(data)))


@pytest.mark.parametrize("size", [1, 511, 513, 1024 + 3])
def test_an_archive_that_breaks_off_is_found(size: int) -> None:
    data = Archive().add("a", b"x" * 2000).bytes()[:size]
    with pytest.raises(Damaged, match="breaks off"):
        list(members(data))


def test_sparse_files_are_refused() -> None:
    data = bytearray(Archive().add("a").bytes(tarfile.GNU_FORMAT))
    data[156:157] = b"S"
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + sum(data[156:512]) + 8 * 32)
    with pytest.raises(Damaged, match="sparse"):
        list(members(bytes(data)))
    with pytest.raises(Damaged, match="sparse"):
        list(members(Archive().add("a", pax_headers={"GNU.sparse.major": "1"}).bytes()))


def test_a_header_without_end_is_refused() -> None:
    data = Archive().add("a", pax_headers={"comment": "x" * (2 << 20)}).bytes()
    with pytest.raises(Damaged, match="too long"):
        list(members(data))


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=3000), st.data())
def test_whatever_comes_it_is_read_or_refused(noise: bytes, data: st.DataObject) -> None:
    good = Archive().add("a" * 120, b"x" * 600, pax_headers={"SCHILY.xattr.user.a": "b"}).link("l", "a").bytes()
    start = data.draw(st.integers(0, len(good) - 1))
    for text in (noise, good[:start] + noise + good[start + len(noise) :]):
        try:
            for entry, content in members(text, 100):
                assert len(content) == entry.size or entry.kind != tar.REGULAR
        except Damaged:
            pass
