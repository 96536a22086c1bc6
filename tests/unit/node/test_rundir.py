"""The directory of an attempt: one winner, a lock that tells life from death."""

import os
from pathlib import Path

import pytest

from runstead.node import rundir

_NAME = "a" * 24 + "-1"


def test_of_two_starters_one_wins(tmp_path: Path) -> None:
    first = rundir.create(str(tmp_path), _NAME, {"n": 1})
    second = rundir.create(str(tmp_path), _NAME, {"n": 2})
    assert first is not None
    assert second is None
    assert os.listdir(tmp_path) == [_NAME]
    assert rundir.read_json(str(tmp_path / _NAME / rundir.ATTEMPT)) == {"n": 1}


def test_the_lock_lives_as_long_as_its_last_holder(tmp_path: Path) -> None:
    path = str(tmp_path / _NAME)
    assert not rundir.is_alive(path)
    lock = rundir.create(str(tmp_path), _NAME, {})
    assert lock is not None
    assert rundir.is_alive(path)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(lock)
    assert rundir.is_alive(path)
    os.close(writer)
    os.waitpid(child, 0)
    assert not rundir.is_alive(path)


@pytest.mark.parametrize("job_id", ["", "a" * 23, "A" * 24, "../" + "a" * 21, "a" * 24 + "\n"])
def test_other_job_ids_are_refused(job_id: str) -> None:
    with pytest.raises(ValueError, match="job id"):
        rundir.attempt_name(job_id, 1)


def test_names_are_read_back() -> None:
    assert rundir.parse_name(rundir.attempt_name("b" * 24, 12)) == ("b" * 24, 12)
    assert [rundir.parse_name(name) for name in (".x", "b" * 24, "b" * 24 + "-0", "b" * 24 + "-1.tmp")] == [None] * 4


def test_half_a_file_is_none(tmp_path: Path) -> None:
    path = tmp_path / "exit.json"
    assert rundir.read_json(str(path)) is None
    path.write_text('{"a": ')
    assert rundir.read_json(str(path)) is None
    rundir.write_json(str(path), {"a": 1}, durable=True)
    assert rundir.read_json(str(path)) == {"a": 1}
    assert os.listdir(tmp_path) == ["exit.json"]
