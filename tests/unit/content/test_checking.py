"""fsck finds every kind of damage, takes what is broken out of use, and a new upload heals it."""

import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from runstead.kit.clock import SystemClock
from runstead.model.content import Damage
from runstead.model.errors import BackendFailure, ContentDamaged, NotFound
from runstead.objects.disk import DiskObjectStore
from runstead.services.content.service import StoredContent
from runstead.stores.content import SqlContentStore
from runstead.stores.sqlite import SqliteDatabase


class Held:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = SqliteDatabase(folder / "db")
        self.store = SqlContentStore(self.database)
        self.objects = DiskObjectStore(folder / "objects")
        self.content = StoredContent(self.store, self.objects, SystemClock(), b"k" * 32)
        self.data = os.urandom(400_000)

    async def fill(self) -> bytes:
        async def pieces() -> AsyncIterator[bytes]:
            yield self.data

        return (await self.content.store("s", pieces())).file_hash

    @property
    def path(self) -> Path:
        return next(path for path in (self.folder / "objects" / "objects").rglob("*-*"))

    async def damages(self, quarantine: bool = True) -> list[Damage]:
        found = self.content.checking([]).check(quarantine)
        return [one async for one in found if isinstance(one, Damage)]


@pytest.fixture
async def held(tmp_path: Path) -> AsyncIterator[Held]:
    held = Held(tmp_path)
    yield held
    held.content.close()
    await held.database.close()


async def test_all_is_well(held: Held) -> None:
    await held.fill()
    read = [one async for one in held.content.checking([]).check()]
    assert read == [held.path.stat().st_size]


@pytest.mark.parametrize("kind", ["flipped", "short", "long", "missing", "other"])
async def test_damage_is_found_and_healed(held: Held, kind: str) -> None:
    name = await held.fill()
    good = held.path.read_bytes()
    bad = {
        "flipped": good[:200_000] + bytes([good[200_000] ^ 1]) + good[200_001:],
        "short": good[:-5],
        "long": good + b"x",
        "other": os.urandom(len(good)),
    }
    if kind == "missing":
        held.path.unlink()
    else:
        held.path.write_bytes(bad[kind])
    assert [one.what for one in await held.damages(quarantine=False)] == ["xorb"]
    assert [one.what for one in await held.damages()] == ["xorb", "file"]
    with pytest.raises(BackendFailure):
        async for _ in held.content.read(name):
            pass
    assert await held.fill() == name
    assert b"".join([piece async for piece in held.content.read(name)]) == held.data
    assert await held.damages() == []


async def test_who_asks_again_for_what_broke_off_is_told_at_once(held: Held) -> None:
    """Clients repeat an answer that breaks off, for minutes, and believe a status."""
    held.data = os.urandom(3_500_000)
    name = await held.fill()
    file = await held.store.file(name)
    assert file is not None
    [xorb] = (await held.content.xorbs.find(file.terms.xorb_hashes())).values()
    good = held.path.read_bytes()
    held.path.write_bytes(good[:-1000] + bytes([good[-1000] ^ 1]) + good[-999:])

    async def read(until: int) -> tuple[bytes, bool]:
        got = bytearray()
        try:
            async for piece in held.content.xorbs.pieces(xorb, 0, until):
                got += piece
        except ContentDamaged:
            return bytes(got), False
        return bytes(got), True

    assert await read(len(good) - 1) == (good[: 3 * 1024 * 1024], False)
    assert await read(len(good) - 1) == (b"", False)
    assert await read(100_000) == (good[:100_001], True)
    held.path.write_bytes(good)
    assert await read(len(good) - 1) == (good, True)


async def test_what_is_referred_to_and_gone(held: Held) -> None:
    from runstead.services.content.content import FileRoots

    class Roots(FileRoots):
        async def referenced(self) -> AsyncIterator[list[bytes]]:
            yield [b"x" * 32, bytes(32)]

    found = [one async for one in held.content.checking([Roots()]).check() if isinstance(one, Damage)]
    assert [one.problem for one in found] == ["it is referred to and not stored"]


async def test_a_file_whose_terms_are_wrong(held: Held) -> None:
    name = await held.fill()
    file = await held.store.file(name)
    assert file is not None
    from dataclasses import replace

    await held.store.register("s", [replace(file, file_hash=b"y" * 32)], [], datetime.now(UTC))
    assert [one.problem for one in await held.damages()] == ["its terms do not give its hash"]


async def test_reading_what_is_not_there(held: Held) -> None:
    with pytest.raises(NotFound):
        await anext(held.content.read(b"z" * 32))
