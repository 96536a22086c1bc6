"""Logs as files: whole lines only, from anywhere, across attempts, also after a crash."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runstead.logs.files import FileLogStore
from runstead.logs.interface import START, Position
from runstead.node.logformat import PREFIX_BYTES, encode, stamp

JOB = "68a1b2c3d4e5f60718293a4b"
AT = datetime(2026, 5, 12, 14, 57, 43, tzinfo=UTC)


async def read_all(store: FileLogStore, position: Position = START, limit: int = 300) -> list[bytes]:
    lines: list[bytes] = []
    while (block := await store.read(JOB, position, limit)).lines:
        lines += [line[PREFIX_BYTES:] for line in block.lines.splitlines()]
        position = block.end
    return lines


@pytest.fixture
def store(tmp_path: Path) -> FileLogStore:
    return FileLogStore(tmp_path)


async def test_an_absent_log_is_empty(store: FileLogStore) -> None:
    assert (await store.read(JOB, START, 100)).lines == b""
    assert await store.tail(JOB, 5) == START
    assert await store.end_time(JOB) is None
    await store.seal(JOB, 1)
    await store.delete(JOB)


async def test_attempts_follow_each_other(store: FileLogStore) -> None:
    await store.append(JOB, 1, ["a", "b"], AT)
    await store.append(JOB, 2, ["c"], AT + timedelta(seconds=1))
    assert await read_all(store) == [b"a", b"b", b"c"]
    assert await store.end_time(JOB) == AT + timedelta(seconds=1)


async def test_time_never_goes_backwards(store: FileLogStore) -> None:
    await store.append(JOB, 1, ["a"], AT)
    await store.append(JOB, 2, ["b"], AT - timedelta(hours=1))
    assert await store.end_time(JOB) == AT


async def test_a_line_is_not_seen_before_it_is_whole(store: FileLogStore) -> None:
    await store.append(JOB, 1, ["a"], AT)
    with store.sink(JOB, 1).open("ab") as file:
        file.write(stamp(AT) + b" half")
    assert await read_all(store) == [b"a"]
    await store.seal(JOB, 1)
    assert await read_all(store) == [b"a", b"half"]
    await store.seal(JOB, 1)
    assert await read_all(store) == [b"a", b"half"]


async def test_sealing_drops_what_is_not_even_a_time(store: FileLogStore) -> None:
    await store.append(JOB, 1, ["a"], AT)
    with store.sink(JOB, 1).open("ab") as file:
        file.write(b"2026-05-12T1")
    await store.seal(JOB, 1)
    assert await read_all(store) == [b"a"]


async def test_tail_zero_is_the_end(store: FileLogStore) -> None:
    await store.append(JOB, 1, ["a", "b"], AT)
    assert await read_all(store, await store.tail(JOB, 0)) == []
    await store.append(JOB, 1, ["c"], AT)
    assert await read_all(store, await store.tail(JOB, 1)) == [b"c"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.binary(max_size=40).filter(lambda b: b"\n" not in b), max_size=12), max_size=4), st.data())
async def test_the_last_lines_are_those_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, attempts: list[list[bytes]], data: st.DataObject
) -> None:
    store = FileLogStore(tmp_path_factory.mktemp("logs"))
    for number, lines in enumerate(attempts, start=1):
        block = b"".join(line + b"\n" for line in lines)
        store.sink(JOB, number).write_bytes(encode(block, stamp(AT) + b" ") if block else b"")
    raw = [line for lines in attempts for line in lines]
    count = data.draw(st.integers(0, len(raw) + 2))
    position = await store.tail(JOB, count)
    got: list[bytes] = []
    while (block := await store.read(JOB, position, 200)).lines:
        got += [line[PREFIX_BYTES:] for line in block.lines.split(b"\n")[:-1]]
        position = block.end
    assert got == raw[len(raw) - min(count, len(raw)) :]


async def test_reading_back_goes_through_all_attempts_to_the_start(store: FileLogStore) -> None:
    await store.append(JOB, 1, [f"a{i}" for i in range(5)], AT)
    await store.append(JOB, 3, [f"b{i}" for i in range(3)], AT)
    end: Position | None = None
    found: list[list[bytes]] = []
    while (part := await store.read_back(JOB, end, 2, 1000)).lines:
        found.append([line[PREFIX_BYTES:] for line in part.lines.splitlines()])
        again = await store.read(JOB, part.start, len(part.lines))
        assert (again.lines, again.end) == (part.lines, part.end)
        end = part.start
    assert found == [[b"b1", b"b2"], [b"b0"], [b"a3", b"a4"], [b"a1", b"a2"], [b"a0"]]
    assert (await store.read_back(JOB, Position(1, 0), 5, 1000)).start == START


async def test_reading_back_is_bounded_and_takes_whole_lines(store: FileLogStore) -> None:
    assert (await store.read_back(JOB, None, 10, 1000)).lines == b""
    await store.append(JOB, 1, ["x" * 100] * 50, AT)
    with store.sink(JOB, 1).open("ab") as file:
        file.write(stamp(AT) + b" half")
    part = await store.read_back(JOB, None, 1000, 300)
    assert len(part.lines.splitlines()) == 2
    assert part.lines.endswith(b"x\n")
    beyond = await store.read_back(JOB, Position(1, 10**9), 1, 1000)
    assert (beyond.start, beyond.end) == (Position(1, 49 * 129), Position(1, 50 * 129))
    inside = await store.read_back(JOB, Position(1, 200), 1, 1000)
    assert (inside.start, inside.end) == (Position(1, 0), Position(1, 129))
