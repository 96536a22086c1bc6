"""What a ContentStore promises, on SQLite and on PostgreSQL."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from runstead.stores.content import SqlContentStore
from runstead.stores.interface import ContentStore, EligibleChunk, StoredFile, StoredXorb
from runstead.stores.opening import open_database
from runstead.xet.hashes import file_hash
from runstead.xet.terms import Term, terms_of
from runstead.xet.xorb_builder import XorbBuilder

NOW = datetime(2026, 3, 4, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'content.db'}"
    make: Callable[[], str] = request.getfixturevalue("new_postgres_database")
    return make()


@pytest.fixture
async def store(url: str) -> AsyncIterator[ContentStore]:
    database = await open_database(url)
    yield SqlContentStore(database)
    await database.close()


def xorb(key: str = "") -> StoredXorb:
    builder = XorbBuilder()
    for _ in range(3):
        builder.add(os.urandom(50))
    facts = builder.finish().facts
    return StoredXorb(facts, key or f"xorbs/{facts.xorb_hash.hex()}", b"12345678")


def file(of: StoredXorb, sha256: str | None = None) -> StoredFile:
    lengths = of.facts.layout.chunk_lengths()
    name = file_hash(of.facts.chunk_hashes or b"", lengths)
    return StoredFile(name, sum(lengths), terms_of([Term(of.facts.xorb_hash, 0, 3, sum(lengths))]), sha256)


def name_of(xorb: StoredXorb) -> bytes:
    return xorb.facts.xorb_hash


async def test_a_xorb_comes_back(store: ContentStore) -> None:
    one = xorb()
    assert await store.add_xorb(one, NOW) == one
    assert await store.xorbs([name_of(one), bytes(32)]) == {name_of(one): one}


async def test_the_first_of_equal_xorbs_stays(store: ContentStore) -> None:
    one = xorb("xorbs/first")
    await store.add_xorb(one, NOW)
    assert await store.add_xorb(StoredXorb(one.facts, "xorbs/second", b""), NOW) == one
    assert await store.known_keys(["xorbs/first", "xorbs/second"]) == {"xorbs/first"}


async def test_many_at_once(store: ContentStore) -> None:
    many = [xorb() for _ in range(150)]
    await asyncio.gather(*(store.add_xorb(one, NOW) for one in many))
    assert set(await store.xorbs([name_of(one) for one in many])) == {name_of(one) for one in many}
    assert await store.confirm_xorbs([name_of(one) for one in many], NOW) == {name_of(one) for one in many}
    assert await store.confirm_xorbs([], NOW) == set()


async def test_going_through_all(store: ContentStore) -> None:
    many = [xorb() for _ in range(25)]
    for one in many:
        await store.add_xorb(one, NOW)
        await store.register("s", [file(one)], [], NOW)
    seen, after = [], b""
    while page := await store.xorbs_after(after, 10):
        seen += [entry.xorb_hash for entry in page]
        after = seen[-1]
    assert seen == sorted(name_of(one) for one in many)
    seen, after = [], b""
    while files := await store.files_after(after, 10):
        seen += [one.file_hash for one in files]
        after = seen[-1]
    assert seen == sorted(file(one).file_hash for one in many)


async def test_files_and_claims(store: ContentStore) -> None:
    one = xorb()
    wanted = file(one, "ab" * 32)
    await store.add_xorb(one, NOW)
    await store.register("bucket:1", [wanted], [], NOW)
    assert await store.file(wanted.file_hash) == wanted
    assert await store.file(wanted.file_hash, "bucket:1") == wanted
    assert await store.file(wanted.file_hash, "bucket:2") is None
    assert await store.files([wanted.file_hash, bytes(32)]) == {wanted.file_hash: wanted}
    assert await store.files([bytes(32), wanted.file_hash], "bucket:1") == {wanted.file_hash: wanted}
    assert await store.files([wanted.file_hash], "bucket:2") == await store.files([]) == {}
    assert await store.hold_files([wanted.file_hash, bytes(32)], NOW) == {wanted.file_hash: wanted.size}
    assert await store.hold_files([wanted.file_hash], NOW, "bucket:2") == {}
    assert await store.claim_files("bucket:2", [wanted.file_hash, bytes(32)], NOW) == {wanted.file_hash: wanted.size}
    assert await store.hold_files([wanted.file_hash], NOW, "bucket:2") == {wanted.file_hash: wanted.size}
    await store.drop_claims("bucket:2")
    assert await store.file(wanted.file_hash, "bucket:2") is None
    assert await store.file(wanted.file_hash, "bucket:1") == wanted


async def test_a_sha256_once_known_stays(store: ContentStore) -> None:
    one = xorb()
    await store.register("s", [file(one, "ab" * 32)], [], NOW)
    await store.register("s", [file(one)], [], NOW)
    found = await store.file(file(one).file_hash)
    assert found is not None and found.sha256 == "ab" * 32


async def test_chunks(store: ContentStore) -> None:
    one = xorb()
    chunk = EligibleChunk(b"c" * 32, name_of(one), file(one).file_hash)
    assert await store.chunk(chunk.chunk_hash) is None
    await store.register("s", [file(one)], [chunk], NOW)
    assert await store.chunk(chunk.chunk_hash) == chunk
    await store.add_xorb(one, NOW - 30 * DAY)
    await store.doom_xorbs([name_of(one)], NOW)
    await store.drop_doomed([one.key])
    assert await store.chunk(chunk.chunk_hash) is None


async def test_what_was_confirmed_is_not_doomed(store: ContentStore) -> None:
    one = xorb()
    await store.add_xorb(one, NOW)
    later = NOW + 30 * DAY
    assert await store.doom_xorbs([name_of(one)], NOW) == []
    assert await store.confirm_xorbs([name_of(one)], later) == {name_of(one)}
    assert await store.xorbs_confirmed_before([name_of(one)], later) == []
    assert await store.doom_xorbs([name_of(one)], later) == []
    assert [entry.key for entry in await store.xorbs_confirmed_before([name_of(one)], later + DAY)] == [one.key]
    assert [entry.key for entry in await store.doom_xorbs([name_of(one)], later + DAY)] == [one.key]
    assert await store.confirm_xorbs([name_of(one)], later) == set()
    assert await store.xorbs([name_of(one)]) == {}
    assert [entry.key for entry in await store.doom_xorbs([name_of(one)], NOW)] == [one.key]


async def test_a_doomed_xorb_is_replaced_and_its_successor_stays(store: ContentStore) -> None:
    one = xorb("xorbs/first")
    await store.add_xorb(one, NOW)
    await store.doom_xorbs([name_of(one)], NOW + DAY)
    second = StoredXorb(one.facts, "xorbs/second", b"")
    assert await store.add_xorb(second, NOW) == second
    await store.drop_doomed(["xorbs/first"])
    assert await store.xorbs([name_of(one)]) == {name_of(one): second}


async def test_quarantine(store: ContentStore) -> None:
    one = xorb("xorbs/first")
    await store.add_xorb(one, NOW)
    await store.quarantine(name_of(one), "xorbs/other")
    assert await store.confirm_xorbs([name_of(one)], NOW) == {name_of(one)}
    await store.quarantine(name_of(one), "xorbs/first")
    assert await store.confirm_xorbs([name_of(one)], NOW) == set()
    assert [entry.usable for entry in await store.xorbs_after(b"", 10)] == [False]
    second = StoredXorb(one.facts, "xorbs/second", b"")
    assert await store.add_xorb(second, NOW) == second
    await store.quarantine(name_of(one), "xorbs/first")
    assert await store.xorbs([name_of(one)]) == {name_of(one): second}


async def test_what_was_held_is_not_dropped(store: ContentStore) -> None:
    one = file(xorb())
    await store.register("s", [one], [], NOW)
    later = NOW + 30 * DAY
    assert await store.drop_files([one.file_hash], NOW) == []
    await store.hold_files([one.file_hash], later)
    assert await store.files_held_before([one.file_hash], later) == []
    assert await store.drop_files([one.file_hash], later) == []
    assert await store.files_held_before([one.file_hash], later + DAY) == [one.file_hash]
    assert await store.drop_files([one.file_hash], later + DAY) == [one.file_hash]
    assert await store.hold_files([one.file_hash], later) == {}
    await store.register("t", [one], [], later)
    assert await store.file(one.file_hash, "s") is None


async def test_a_promise_and_a_removal_at_once_never_both_win(store: ContentStore) -> None:
    later = NOW + 30 * DAY
    for _ in range(15):
        one = xorb()
        await store.add_xorb(one, NOW)
        await store.register("s", [file(one)], [], NOW)
        confirmed, doomed, held, dropped = await asyncio.gather(
            store.confirm_xorbs([name_of(one)], later),
            store.doom_xorbs([name_of(one)], later),
            store.hold_files([file(one).file_hash], later),
            store.drop_files([file(one).file_hash], later),
        )
        assert bool(confirmed) != bool(doomed)
        assert bool(held) != bool(dropped)


async def test_the_name_of_the_store(store: ContentStore) -> None:
    names = set(await asyncio.gather(*(store.store_id(NOW) for _ in range(5))))
    assert len(names) == 1
    (name,) = names
    assert await store.renew_store_id(name, NOW + timedelta(seconds=5), 600) == name
    assert await store.renew_store_id("other", NOW + DAY, 600) == name
    second = await store.renew_store_id(name, NOW + DAY, 600)
    assert second != name
    assert await store.store_id(NOW) == second
    assert await store.renew_store_id(name, NOW + 2 * DAY, 600) == second


async def test_what_was_registered_just_now_is_held_until_it_is_taken_away(store: ContentStore) -> None:
    of = xorb()
    await store.add_xorb(of, NOW)
    wanted = file(of)
    await store.register("bucket:a", [wanted], [], NOW)
    for at in (NOW, NOW + DAY / 24):  # from what is remembered, and from the database
        assert await store.hold_files([wanted.file_hash, bytes(32)], at, "bucket:a") == {wanted.file_hash: wanted.size}
        assert await store.hold_files([wanted.file_hash], at, "bucket:b") == {}
    await store.drop_claims("bucket:a")
    assert await store.hold_files([wanted.file_hash], NOW, "bucket:a") == {}
    await store.register("bucket:a", [wanted], [], NOW)
    assert await store.drop_files([wanted.file_hash], NOW + DAY) == [wanted.file_hash]
    assert await store.hold_files([wanted.file_hash], NOW, "bucket:a") == {}
