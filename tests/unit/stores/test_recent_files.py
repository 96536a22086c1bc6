"""What was registered a moment ago is known, for a while, to its scope alone."""

from datetime import UTC, datetime, timedelta

from runstead.stores import recent_files
from runstead.stores.recent_files import RecentFiles

NOW = datetime(2026, 3, 4, tzinfo=UTC)
A, B = b"a" * 32, b"b" * 32


def test_a_file_is_known_to_its_scope_for_some_minutes() -> None:
    recent = RecentFiles()
    recent.add("bucket:1", [(A, 5)], NOW)
    assert recent.sizes("bucket:1", [A, B], NOW) == {A: 5}
    assert recent.sizes("bucket:2", [A], NOW) == {}
    assert recent.sizes("bucket:1", [A], NOW + timedelta(minutes=10)) == {A: 5}
    assert recent.sizes("bucket:1", [A], NOW + timedelta(minutes=10, seconds=1)) == {}
    assert recent.sizes("bucket:1", [A], NOW - timedelta(seconds=1)) == {}  # the clock was set back: ask
    recent.clear()
    assert recent.sizes("bucket:1", [A], NOW) == {}


def test_no_more_than_so_many_are_kept(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(recent_files, "_MOST", 2)
    recent = RecentFiles()
    recent.add("bucket:1", [(A, 1), (B, 2)], NOW)
    recent.add("bucket:1", [(A, 1), (b"c" * 32, 3)], NOW)
    assert recent.sizes("bucket:1", [A, B, b"c" * 32], NOW) == {A: 1, b"c" * 32: 3}
