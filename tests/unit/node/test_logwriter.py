"""The writer of a job's log, at its edges."""

from pathlib import Path

import pytest

from runstead.node import logwriter
from runstead.node.logformat import LINE_LIMIT, PREFIX_BYTES
from runstead.node.logwriter import LogWriter


def _texts(path: Path) -> list[bytes]:
    data = path.read_bytes()
    assert not data or data.endswith(b"\n")
    return [line[PREFIX_BYTES:] for line in data.split(b"\n")[:-1]]


@pytest.mark.parametrize("size", [1, 2, 7, 4096, logwriter.READ_BYTES])
def test_blocks_may_be_cut_anywhere(tmp_path: Path, size: int) -> None:
    output = b"".join(b"%d\n" % n for n in range(3000)) + b"\n\nend"
    writer = LogWriter(str(tmp_path / "log"), 0, 1 << 30)
    for at in range(0, len(output), size):
        writer.feed(output[at : at + size])
    writer.finish()
    assert _texts(tmp_path / "log") == output.split(b"\n")


@pytest.mark.parametrize("length", [LINE_LIMIT - 1, LINE_LIMIT, LINE_LIMIT + 1, 3 * LINE_LIMIT + 5])
@pytest.mark.parametrize("before", [b"", b"short\n", b"x" * 100])
def test_long_lines_are_continued(tmp_path: Path, length: int, before: bytes) -> None:
    output = before + b"y" * length + b"\nafter\n"
    writer = LogWriter(str(tmp_path / "log"), 0, 1 << 30)
    for at in range(0, len(output), logwriter.READ_BYTES):
        writer.feed(output[at : at + logwriter.READ_BYTES])
    writer.finish()
    texts = _texts(tmp_path / "log")
    assert max(len(text) for text in texts) <= LINE_LIMIT
    assert b"".join(texts) == output.replace(b"\n", b"")
    assert texts[-1] == b"after"


def test_the_limit_is_kept_and_told_once(tmp_path: Path) -> None:
    writer = LogWriter(str(tmp_path / "log"), 0, 10_000)
    for _ in range(50):
        writer.feed(b"0123456789\n" * 100)
    writer.finish()
    *kept, last = _texts(tmp_path / "log")
    assert set(kept) == {b"0123456789"}
    assert b"Log limit of 10000 bytes" in last
    assert (tmp_path / "log").stat().st_size < 10_200
    assert writer.lost_because is not None
    assert writer.lost_bytes == 55_000 - 11 * len(kept)


def test_a_clock_that_goes_back_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([5_000_000_000, 4_000_000_000, 6_000_000_000])
    monkeypatch.setattr(logwriter.time, "time_ns", lambda: next(times))
    writer = LogWriter(str(tmp_path / "log"), 4_500_000, 1 << 30)
    for _ in range(3):
        writer.feed(b"x\n")
    stamps = [line[:PREFIX_BYTES] for line in (tmp_path / "log").read_bytes().splitlines()]
    assert [stamp[17:26] for stamp in stamps] == [b"05.000000", b"05.000000", b"06.000000"]


def test_a_full_disk_is_told_and_survived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = LogWriter(str(tmp_path / "log"), 0, 1 << 30)
    real = logwriter.os.write
    room = [100]

    def write(fd: int, data: bytes) -> int:
        if room[0] <= 0:
            raise OSError(28, "No space left on device")
        done = real(fd, data[: room[0]])
        room[0] -= done
        return done

    monkeypatch.setattr(logwriter.os, "write", write)
    for number in range(20):
        writer.feed(b"line %d\n" % number)
    assert _texts(tmp_path / "log") == [b"line 0", b"line 1"]  # never half a line
    assert "No space left" in str(writer.lost_because)
    room[0] = 1 << 20
    writer.feed(b"again\n")
    writer.finish()
    kept = _texts(tmp_path / "log")
    assert kept[:2] == [b"line 0", b"line 1"]
    assert b"missing here" in kept[2]
    assert kept[3] == b"again"


def test_lines_of_our_own_are_lines(tmp_path: Path) -> None:
    writer = LogWriter(str(tmp_path / "log"), 0, 1 << 30)
    writer.say("one\ntwo \udcff")
    assert _texts(tmp_path / "log") == [b"one", b"two ?"]
