"""Following a bucket: from where, in what order, and until when."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from runstead.model.accounts import Caller
from runstead.model.buckets import Batch, Bucket
from runstead.services.buckets import following
from runstead.services.buckets.following import Ready, Reconnect, Reset, Told

from .conftest import START, World
from .test_keeping import bucket_of, put


async def told(world: World, bucket: Bucket, since: Any, count: int) -> list[Told]:
    stream = world.following.follow(bucket, since)
    try:
        return [await asyncio.wait_for(anext(stream), 5) for _ in range(count)]
    finally:
        await stream.aclose()


async def test_from_a_version_from_an_instant_or_from_now(world: World, alice: Caller) -> None:
    for size in (1, 2, 3):
        world.clock.turn(seconds=1)
        await put(world, alice, a=size)
    bucket = await bucket_of(world)

    async def versions(since: Any, count: int) -> list[Any]:
        return [
            one.version if isinstance(one, Batch | Ready) else one for one in await told(world, bucket, since, count)
        ]

    assert await versions(None, 1) == [3]
    assert await versions(0, 4) == [1, 2, 3, 3]
    assert await versions(2, 2) == [3, 3]
    assert await versions(3, 1) == [3]
    assert await versions(START + timedelta(seconds=1.5), 3) == [2, 3, 3]
    assert await versions(4, 1) == [Reset()]  # of a database that was restored from a backup
    await world.log.forget_batches(START + timedelta(seconds=2.5), 10)
    assert await versions(1, 1) == [Reset()]
    assert await versions(START, 1) == [Reset()]
    assert await versions(2, 2) == [3, 3]


async def test_what_comes_while_waiting_is_told_at_once(world: World, alice: Caller) -> None:
    await put(world, alice, a=1)
    stream = world.following.follow(await bucket_of(world), None)
    assert await anext(stream) == Ready(1)
    for size in range(2, 12):
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        await put(world, alice, a=size)
        batch = await asyncio.wait_for(waiting, 1)
        assert isinstance(batch, Batch) and batch.version == size
    await stream.aclose()


async def test_many_batches_at_once_lose_none(world: World, alice: Caller) -> None:
    await put(world, alice, a=1)
    stream = world.following.follow(await bucket_of(world), 0)
    await asyncio.gather(*(put(world, alice, **{f"p{n}": 1}) for n in range(60)))
    batches = [one for one in [await anext(stream) for _ in range(62)] if isinstance(one, Batch)]
    assert [batch.version for batch in batches] == list(range(1, 62))
    await stream.aclose()


async def test_a_sign_of_life(world: World, alice: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(following, "KEEPALIVE_SECONDS", 0.03)
    await put(world, alice, a=1)
    assert await told(world, await bucket_of(world), None, 3) == [Ready(1), None, None]


async def test_what_another_process_wrote_is_found_without_a_wake_up(
    world: World, alice: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_POLL_SECONDS", 0.01)
    await put(world, alice, a=1)
    bucket = await bucket_of(world)
    stream = world.following.follow(bucket, None)
    assert await anext(stream) == Ready(1)
    await world.store.apply(bucket.seq, {"a": None}, START)
    assert isinstance(await asyncio.wait_for(anext(stream), 1), Batch)
    await stream.aclose()


async def test_the_end(world: World, alice: Caller) -> None:
    await put(world, alice, a=1)
    bucket = await bucket_of(world)
    streams = [world.following.follow(bucket, None) for _ in range(3)]
    for stream in streams:
        assert await anext(stream) == Ready(1)
    waiting = [asyncio.ensure_future(anext(stream)) for stream in streams]
    await asyncio.sleep(0)
    await world.buckets.set_private(alice, "alice", "data", True)
    assert await asyncio.wait_for(asyncio.gather(*waiting), 1) == [Reconnect(1)] * 3

    bucket = await bucket_of(world)
    stream = world.following.follow(bucket, None)
    assert await anext(stream) == Ready(1)
    last = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    world.following.close()
    assert await asyncio.wait_for(last, 1) == Reconnect(1)
    with pytest.raises(StopAsyncIteration):
        await anext(stream)
    assert await told(world, bucket, None, 1) == [Reconnect(1)]
