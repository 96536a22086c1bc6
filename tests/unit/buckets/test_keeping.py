"""History: what is shown, what comes back, what is forgotten and when; and what of content is needed meanwhile."""

from datetime import timedelta
from typing import Any

import pytest

from runstead.model.accounts import Caller
from runstead.model.buckets import Bucket
from runstead.model.errors import BackendFailure, Conflict, Invalid, NotFound
from runstead.services.buckets.batches import AddFile, DeleteFile
from runstead.services.buckets.keeping import BucketRoots

from .conftest import HISTORY_DAYS, START, World, hash_of


async def put(world: World, caller: Caller, **files: int | None) -> None:
    """Make paths files of these sizes (None: absent) in the bucket `data`."""
    bucket = await world.store.find("alice", "data") or await world.buckets.create(caller, "me", "data")
    world.clock.turn(milliseconds=1)  # a batch is always later than what was before
    operations: list[Any] = []
    for path, size in files.items():
        if size is None:
            operations.append(DeleteFile(path))
        else:
            world.content.upload(bucket.scope, hash_of(size))
            operations.append(AddFile(path, hash_of(size), START))
    assert (await world.batches.apply(caller, "alice", "data", operations)).refused == ()


async def sizes(world: World) -> dict[str, int]:
    bucket = await world.keeping.find("alice", "data")
    return {file.path: file.size for file in await world.store.tree(bucket.seq, "", "", 100)}


async def roots(world: World) -> set[bytes]:
    return {one async for some in BucketRoots(world.log).referenced() for one in some}


async def bucket_of(world: World) -> Bucket:
    return await world.keeping.find("alice", "data")


async def test_restore_goes_there_and_back(world: World, alice: Caller) -> None:
    await put(world, alice, a=1, b=2)
    world.clock.turn(hours=1)
    then = world.clock.now()
    world.clock.turn(hours=1)
    await put(world, alice, a=3, b=None, c=4)
    present = world.clock.now()
    world.clock.turn(hours=1)
    world.content.held.clear()
    assert sorted(await world.keeping.restore(await bucket_of(world), then)) == ["a", "b", "c"]
    assert await sizes(world) == {"a": 1, "b": 2}
    assert world.content.held == {hash_of(1), hash_of(2)}  # before they were referred to again
    world.clock.turn(hours=1)
    await world.keeping.restore(await bucket_of(world), present)
    assert await sizes(world) == {"a": 3, "c": 4}
    assert await world.keeping.restore(await bucket_of(world), world.clock.now()) == []


async def test_one_path_alone(world: World, alice: Caller) -> None:
    await put(world, alice, a=1, b=2)
    then = world.clock.now()
    world.clock.turn(hours=1)
    await put(world, alice, a=None, b=None)
    assert await world.keeping.restore(await bucket_of(world), then, "b") == ["b"]
    assert await sizes(world) == {"b": 2}


async def test_a_time_beyond_the_history_is_refused(world: World, alice: Caller) -> None:
    await put(world, alice, a=1)
    bucket = await bucket_of(world)
    for wrong in (START - timedelta(days=HISTORY_DAYS, seconds=1), START + timedelta(seconds=1)):
        with pytest.raises(Invalid, match="30 days"):
            await world.keeping.restore(bucket, wrong)


async def test_lost_content_is_told_and_not_referred_to(world: World, alice: Caller) -> None:
    await put(world, alice, a=1)
    then = world.clock.now()
    world.clock.turn(hours=1)
    await put(world, alice, a=2)
    world.content.lost.add(hash_of(1))
    with pytest.raises(BackendFailure, match="lost"):
        await world.keeping.restore(await bucket_of(world), then)
    assert await sizes(world) == {"a": 2}


async def test_what_is_kept_long_enough_is_forgotten(world: World, alice: Caller) -> None:
    await put(world, alice, a=1)
    await put(world, alice, a=2)
    world.clock.turn(days=HISTORY_DAYS / 2)
    await put(world, alice, a=3)
    assert await roots(world) == {hash_of(1), hash_of(2), hash_of(3)}
    await world.keeping.run_once()
    assert await roots(world) == {hash_of(1), hash_of(2), hash_of(3)}
    world.clock.turn(days=HISTORY_DAYS / 2, seconds=1)
    await world.keeping.run_once()
    assert await roots(world) == {hash_of(2), hash_of(3)}
    assert [kept.file.size async for kept in world.keeping.kept(await bucket_of(world), "")] == [2]
    world.clock.turn(days=HISTORY_DAYS)
    await world.keeping.run_once()
    assert await roots(world) == {hash_of(3)}


async def test_a_deleted_bucket_comes_back_or_goes_for_good(world: World, alice: Caller) -> None:
    await put(world, alice, a=1, b=2)
    scope = (await bucket_of(world)).scope
    await world.buckets.delete(alice, "alice", "data")
    with pytest.raises(NotFound, match="--deleted"):
        await world.keeping.find("alice", "data")
    assert await roots(world) == {hash_of(1), hash_of(2)}
    world.clock.turn(days=HISTORY_DAYS - 1)
    await world.keeping.run_once()
    await world.keeping.undelete("alice", "data")
    assert await sizes(world) == {"a": 1, "b": 2}
    with pytest.raises(NotFound):
        await world.keeping.undelete("alice", "data")

    await world.buckets.delete(alice, "alice", "data")
    await put(world, alice, other=9)
    with pytest.raises(Conflict):
        await world.keeping.undelete("alice", "data")
    world.clock.turn(days=HISTORY_DAYS, seconds=1)
    assert world.content.forgotten == []
    await world.keeping.run_once()
    assert world.content.forgotten == [scope]
    assert await roots(world) == {hash_of(9)}
    with pytest.raises(NotFound):
        await world.keeping.undelete("alice", "gone")
