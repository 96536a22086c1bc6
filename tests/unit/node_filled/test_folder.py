"""What is remembered of a volume's files, and what is found to have changed."""

import os
import time
from pathlib import Path

from runstead.node.filled.cache import ContentCache
from runstead.node.filled.changes import find_changes
from runstead.node.filled.filling import _fitting
from runstead.node.filled.folder import Folder, KnownFile
from runstead.node.filled.folders import Folders
from runstead.node.filled.hub import BucketFile

ONE, TWO = KnownFile("a" * 64, 1, 2, 3, 4), KnownFile("b" * 64, 5, 6, 7, 8)


def test_the_journal_remembers_and_forgets(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.remember(0, {"a": ONE, "b\nü": ONE}, anew=True)
    folder.remember(0, {"a": TWO, "b\nü": None, "c": ONE})
    assert folder.known(0) == {"a": TWO, "c": ONE}
    assert folder.known(1) == {}
    folder.remember(0, {}, anew=True)
    assert folder.known(0) == {}


def test_a_line_that_a_crash_cut_short_harms_no_other(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    folder.remember(0, {"a": ONE}, anew=True)
    whole = (tmp_path / "0.known").read_bytes()
    folder.remember(0, {"b": ONE})
    for cut in range(len(whole), (tmp_path / "0.known").stat().st_size):
        folder.remember(0, {"a": ONE}, anew=True)
        folder.remember(0, {"b": ONE})
        os.truncate(tmp_path / "0.known", cut)
        folder.remember(0, {"c": TWO})
        known = folder.known(0)
        assert (known["a"], known["c"]) == (ONE, TWO)


def known_of(root: Path, *paths: str) -> dict[str, KnownFile]:
    return {path: KnownFile.of("a" * 64, os.lstat(root / path)) for path in paths}


def test_changes_are_found_and_links_are_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "d", outside):
        folder.mkdir(parents=True)
    for path in ("same", "touched", "longer", "gone", "d/moved"):
        (root / path).write_text("text")
    (outside / "secret").write_text("secret")
    known = known_of(root, "same", "touched", "longer", "gone", "d/moved")
    assert find_changes(str(root), known).is_empty
    (root / "new").write_text("")
    (root / "touched").touch()
    (root / "longer").write_text("longer text")
    (root / "gone").unlink()
    (root / "d/moved").rename(root / "here")
    (root / "link").symlink_to(outside)
    changes = find_changes(str(root), known)
    assert sorted(path for path, _ in changes.written) == ["here", "longer", "new"]
    assert [path for path, _ in changes.doubtful] == ["touched"]
    assert sorted(changes.gone) == ["d/moved", "gone"]
    assert len(changes.left_out.texts()) == 1


def test_of_many_links_only_some_are_named(tmp_path: Path) -> None:
    for i in range(50):
        (tmp_path / f"l{i}").symlink_to("/x")
    texts = find_changes(str(tmp_path), {}).left_out.texts()
    assert len(texts) == 21
    assert texts[-1] == "and 30 more like these"


def test_what_a_file_system_cannot_show_is_left_out_and_said() -> None:
    def file(path: str) -> tuple[str, BucketFile]:
        return path, BucketFile(path, "a" * 64, 1, 0)

    fitting, notes = _fitting([file("a"), file("a/b"), file("c" * 256), file("d/e/f"), file("d/e"), file("")])
    assert [path for path, _ in fitting] == ["a/b", "d/e/f"]
    assert len(notes) == 3


def test_the_cache_keeps_what_was_used_last_and_what_it_gives_out_stays(tmp_path: Path) -> None:
    cache = ContentCache(str(tmp_path / "cache"), 250)
    names = [letter * 64 for letter in "abc"]
    for i, name in enumerate(names):
        temporary = Path(cache.temporary(name))
        temporary.write_bytes(bytes(100))
        cache.add(name, str(temporary))
        at = time.time() - 1000 + i
        os.utime(tmp_path / "cache" / name[:2] / name, (at, at))
    assert cache.link(names[0], str(tmp_path / "linked"))  # the oldest, used just now
    cache.trim()
    assert not cache.link(names[1], str(tmp_path / "x"))
    assert cache.copy(names[2], str(tmp_path / "copied"))
    (tmp_path / "copied").write_bytes(b"changed")
    assert cache.link(names[2], str(tmp_path / "again"))
    assert (tmp_path / "again").read_bytes() == bytes(100)
    ContentCache(str(tmp_path / "cache"), 0).trim()
    assert (tmp_path / "linked").read_bytes() == bytes(100)
    assert not cache.copy(names[0], str(tmp_path / "y"))


def test_half_a_removal_is_finished_at_the_next_start(tmp_path: Path) -> None:
    folders = Folders(str(tmp_path))
    folders.open()
    trash = tmp_path / "node" / "volumes" / ".trash-x"
    (trash / "deep").mkdir(parents=True)
    assert folders.used() == []
    folders.open()
    assert not trash.exists()


def test_what_was_never_prepared_is_removed(tmp_path: Path) -> None:
    folders = Folders(str(tmp_path))
    folders.open()
    half = folders.folder("a" * 24, 1)
    os.makedirs(half.files_path(0))
    Path(half.files_path(0), "part").write_text("x")
    assert folders.used() == [("a" * 24, 1)]
    assert folders.release("a" * 24, 1, keep_unsaved=True) is None
    assert (folders.used(), folders.unsaved()) == ([], [])
