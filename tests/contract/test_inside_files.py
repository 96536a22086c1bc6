"""What every executor promises about the files of running attempts."""

import asyncio
import errno
import hashlib
import os
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest

from contract.insides import OK, Room, own, read, room, site, write
from runstead.model.errors import Conflict, EntryNotFound, Invalid
from runstead.model.executions import FileEntry

__all__ = ["room", "site"]


async def test_files_are_written_and_read(room: Room) -> None:
    data = os.urandom(3 << 20)
    before = datetime.now(UTC) - timedelta(seconds=2)
    await write(room, "new/deep/file", data, parents=True, mode=0o640)
    assert (await room.run("sha256sum", "new/deep/file")).out.split()[0] == hashlib.sha256(data).hexdigest()
    assert (await room.shell("stat -c '%a %U %s' new/deep/file; stat -c '%a %U' new/deep")).out == (
        f"640 root {len(data)}\n755 root\n" if os.geteuid() == 0 else ""
    )
    assert await read(room, "new/deep/file") == data
    described = await room.inside.stat("new/deep/file")
    folder = (await room.run("pwd")).out.strip().rstrip("/")
    assert described == FileEntry("file", f"{folder}/new/deep/file", "file", len(data), described.modified_at, 0o640)
    assert before < described.modified_at <= datetime.now(UTC) + timedelta(seconds=2)
    await write(room, f"{folder}/new/deep/file", b"short")
    assert await read(room, "new/deep/file") == b"short"
    file = await room.inside.open_file("new/deep/file", write=True)
    await file.write(2, b"XY")
    await file.close()
    assert await read(room, "new/deep/file") == b"shXYt"
    assert (await room.inside.stat("new/deep/file")).mode == 0o640


async def test_what_cannot_be_opened_says_why(room: Room) -> None:
    inside, base = room.inside, own(room)
    await write(room, f"{base}/plain", b"x")
    await room.shell(
        f"cd {base}; mkfifo fifo; ln -s fifo to-fifo; ln -s /dev/zero to-zero; ln -s nowhere/at/all broken; ln -s a b; "
        "ln -s b a; mkdir folder; ln -s folder to-folder; "
        "python3 -c 'import socket as s; s.socket(s.AF_UNIX).bind(\"so\")'"
    )
    for write_ in (False, True):
        for path, kind in (
            ("folder", Conflict),
            ("to-folder", Conflict),
            ("fifo", Invalid),
            ("to-fifo", Invalid),
            ("/dev/zero", Invalid),
            ("to-zero", Invalid),
            ("/dev/null", Invalid),
            ("so", Invalid),
            ("plain/below", (EntryNotFound, Invalid)),
            ("a", Invalid),
            ("no\0zero", Invalid),
            ("x" * 300, Invalid),
            ("/proc/self/mem", Invalid),
            ("/proc/self/environ", Invalid),
            ("/proc/self/fd/0", Invalid),
            ("/proc/self/fd/3", Invalid),
        ):
            with pytest.raises(kind) as caught:
                await inside.open_file(path if path[0] == "/" else f"{base}/{path}", write=write_)
            assert len(caught.value.message) > 10
    for path in ("missing", "broken", "missing/deep"):
        with pytest.raises(EntryNotFound):
            await inside.open_file(f"{base}/{path}")
    for path in ("broken", "missing/deep"):
        with pytest.raises((EntryNotFound, Invalid)):
            await inside.open_file(f"{base}/{path}", write=True)
    with pytest.raises(Invalid):
        await inside.open_file(f"{base}/plain/below/deep", write=True, parents=True)
    # A pipe that somebody waits at is not touched: they would notice.
    async with room.running("sh", "-c", f"echo x > {base}/fifo; echo written") as waiting:
        with pytest.raises(Invalid):
            await inside.open_file(f"{base}/fifo")
        read_ = asyncio.create_task(waiting.read())
        await asyncio.sleep(0.1)
        assert not read_.done()
        assert (await room.run("cat", f"{base}/fifo")).out == "x\n"
        assert (await read_).data == b"written\n"


async def test_ranges_are_written_in_parallel_and_out_of_order(room: Room) -> None:
    step, count = 1 << 20, 24
    data = [os.urandom(step) for _ in range(count)]
    order = sorted(range(count), key=lambda number: (number * 7) % count)

    async def one(number: int) -> None:
        file = await room.inside.open_file("new/ranges", write=True, parents=True, mode=0o600)
        if number == count - 1:
            await file.truncate(step * count)
        await file.write(number * step, data[number])
        await file.close()

    await asyncio.gather(*(one(number) for number in order))
    assert await read(room, "new/ranges") == b"".join(data)
    file = await room.inside.open_file("new/ranges")
    parts = await asyncio.gather(*(file.read(number * step, step) for number in order))
    await file.close()
    assert parts == [data[number] for number in order]


async def test_offsets_beyond_four_gigabytes(room: Room) -> None:
    far = 5 * 10**9
    file = await room.inside.open_file("sparse", write=True)
    await file.truncate(far + 10)
    await file.write(far, b"0123456789")
    assert await file.size() == far + 10
    await file.close()
    file = await room.inside.open_file("sparse")
    assert await file.read(far - 2, 5) == b"\0\x00012"
    assert await file.read(far + 8, 100) == b"89"
    assert await file.read(far + 10, 100) == b""
    await file.close()
    assert (await room.inside.stat("sparse")).size_bytes == far + 10
    await room.inside.delete("sparse", recursive=False)


async def test_using_a_file_that_is_closed(room: Room) -> None:
    file = await room.inside.open_file("closed", write=True)
    await file.close()
    await file.close()
    for use in (
        lambda: file.write(0, b"x"),
        lambda: file.read(0, 1),
        lambda: file.truncate(0),
        lambda: file.size(),
    ):
        with pytest.raises(OSError) as caught:
            await use()
        assert caught.value.errno == errno.EBADF


async def test_a_full_disk_is_an_error_of_the_system(room: Room) -> None:
    if not room.site.row.isolated:
        pytest.skip("there is no small file system of its own")
    file = await room.inside.open_file("/dev/shm/big", write=True)
    with pytest.raises(OSError) as caught:
        for number in range(1024):
            await file.write(number << 20, b"x" * (1 << 20))
    assert caught.value.errno == errno.ENOSPC
    await file.close()


async def test_folders_are_listed_in_pages(room: Room) -> None:
    await room.shell(
        "mkdir -p many/sub; cd many; for i in $(seq 100 399); do echo $i > f$i; done; ln -s f100 link; mkfifo pipe"
    )
    names = sorted([*(f"f{number}" for number in range(100, 400)), "link", "pipe", "sub"])
    found: list[FileEntry] = []
    while page := await room.inside.list_folder("many", found[-1].name if found else None, 64):
        assert len(page) <= 64
        found.extend(page)
    assert [entry.name for entry in found] == names
    kinds = {entry.name: entry.kind for entry in found}
    assert (kinds["f100"], kinds["link"], kinds["pipe"], kinds["sub"]) == ("file", "symlink", "other", "dir")
    assert all(entry.path.endswith(f"/many/{entry.name}") for entry in found)
    assert await room.inside.list_folder("many", "zzz", 10) == []
    root = await room.inside.stat("/")
    assert (root.name, root.path, root.kind) == ("", "/", "dir")
    assert "usr" in [entry.name for entry in await room.inside.list_folder("/", None, 1000)]
    with pytest.raises(EntryNotFound):
        await room.inside.list_folder("missing", None, 10)
    with pytest.raises(Invalid):
        await room.inside.list_folder("many/f100", None, 10)


async def test_names_that_are_no_text(room: Room) -> None:
    await room.run("python3", "-c", "import os; os.mkdir(b'odd'); open(b'odd/\\xff\\n\\xc3\\xbc', 'w').write('x')")
    [entry] = await room.inside.list_folder("odd", None, 10)
    assert os.fsencode(entry.name) == b"\xff\n\xc3\xbc"
    assert await read(room, f"odd/{entry.name}") == b"x"


async def test_folders_are_made_and_deleted(room: Room) -> None:
    inside = room.inside
    await inside.make_folder("one/two/three")
    await inside.make_folder("one/two/three")
    await write(room, "one/file", b"x")
    with pytest.raises(Invalid):
        await inside.make_folder("one/file")
    with pytest.raises(Invalid):
        await inside.make_folder("one/file/below")
    with pytest.raises(Invalid):
        await inside.delete("one", recursive=False)
    await inside.delete("one/two/three", recursive=False)
    await room.shell("ln -s /usr one/link; ln -s one/two other")
    await inside.delete("one/link", recursive=True)
    assert (await inside.stat("other")).kind == "symlink"
    await inside.delete("other", recursive=True)
    assert (await inside.stat("one/two")).kind == "dir"
    await inside.delete("one", recursive=True)
    for call in (
        lambda: inside.stat("one"),
        lambda: inside.delete("one", recursive=True),
        lambda: inside.delete("one/x", recursive=False),
    ):
        with pytest.raises(EntryNotFound):
            await call()
    assert (await room.run("ls", "/usr/bin")).ended == OK
    with pytest.raises(Invalid):
        await inside.delete("/", recursive=True) if room.site.row.isolated else await inside.delete(".", recursive=True)
    await room.run("python3", "-c", "import os\nfor _ in range(2000): os.mkdir('d'); os.chdir('d')")
    await inside.delete("d", recursive=True)
    with pytest.raises(EntryNotFound):
        await inside.stat("d")


async def test_links_lead_nowhere_but_inside(room: Room) -> None:
    if not room.site.row.isolated:
        pytest.skip("not promised")
    secret = room.site.data_dir / "secret"
    secret.write_text("of the machine")
    await room.shell(
        f"ln -s {room.site.data_dir} out; ln -s {secret} file; ln -s /../../../.. up; ln -s /etc/hostname name"
    )
    for path in ("out/secret", "file", "up/secret", f"up{secret}", f"../../../../..{secret}", str(secret)):
        with pytest.raises(EntryNotFound):
            await room.inside.open_file(path)
    assert await read(room, "name") == await read(room, "/etc/hostname") == await read(room, "../../../etc/hostname")
    # A race between a file and a link out: whatever is opened is inside.
    flip = (
        "import os\nos.mkdir('d1'); os.symlink(%r, 'd2')\nopen('d1/secret', 'w').write('mine')\n"
        "while True: os.rename('d1', 'dx'); os.rename('d2', 'd1'); os.rename('dx', 'd2')"
    )
    async with room.running("python3", "-c", flip % str(room.site.data_dir)):
        for _ in range(300):
            with suppress(EntryNotFound):
                assert await read(room, "d1/secret") == b"mine"


async def test_files_while_they_are_changed_from_inside(room: Room) -> None:
    await write(room, "changing", b"x" * 1000)
    file = await room.inside.open_file("changing")
    await room.shell(": > changing")
    assert await file.size() == 0
    assert await file.read(0, 1000) == b""
    await room.shell("rm changing")
    assert await file.read(0, 1000) == b""
    await file.close()


async def test_a_file_moves_at_the_speed_of_memory(room: Room) -> None:
    size, step = 256 << 20, 1 << 20
    block = os.urandom(step)
    began = time.monotonic()
    file = await room.inside.open_file("fast", write=True)
    for offset in range(0, size, step):
        await file.write(offset, block)
    await file.close()
    file = await room.inside.open_file("fast")
    for offset in range(0, size, step):
        assert len(await file.read(offset, step)) == step
    await file.close()
    assert 2 * size / (time.monotonic() - began) > 100e6  # far below what it is: the machine is shared


async def test_folders_are_listed_by_many_at_once(room: Room) -> None:
    """Also where it is the first thing that is asked for on a connection."""
    await room.inside.make_folder("many/one")
    found = await asyncio.gather(*(room.inside.list_folder("many", None, 10) for _ in range(30)))
    assert [[entry.name for entry in entries] for entries in found] == [["one"]] * 30
