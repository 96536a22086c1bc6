"""Private id ranges and shared directories of owners."""

import os
import threading
from pathlib import Path

import pytest

from runstead.node import places


def test_ranges_are_kept_apart_and_remembered(tmp_path: Path) -> None:
    found = {owner: places.first_id(str(tmp_path), owner) for owner in ("alice", "bob", "c.d_e-f", "A1")}
    assert len(set(found.values())) == 4
    assert all(first % places.IDS == 0 and 0x70000000 <= first < 0x7FFE0000 for first in found.values())
    assert {owner: places.first_id(str(tmp_path), owner) for owner in found} == found


def test_starters_at_the_same_time_agree(tmp_path: Path) -> None:
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(places.first_id(str(tmp_path), "alice"))) for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 16
    assert len(set(found)) == 1


def test_two_that_wish_for_the_same_range_get_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places.zlib, "crc32", lambda _data: 7)
    assert abs(places.first_id(str(tmp_path), "a") - places.first_id(str(tmp_path), "b")) == places.IDS


@pytest.mark.parametrize("owner", ["", ".", "..", "a/b", "-a", "a\n", "a" * 200, "ä"])
def test_names_that_must_not_become_paths(tmp_path: Path, owner: str) -> None:
    with pytest.raises(ValueError, match="namespace"):
        places.owner_path(str(tmp_path), owner)


def test_the_shared_directory_is_made_once(tmp_path: Path) -> None:
    path = places.prepare_shared(str(tmp_path), "alice", None)
    assert path == places.prepare_shared(str(tmp_path), "alice", None)
    assert sorted(os.listdir(path)) == ["cache", "venvs"]
    assert os.listdir(os.path.dirname(path)) == ["env"]
