"""What an attempt left as it was is the next one's; whatever it changed, is not."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from runstead.node.kept import Kept
from runstead.node.venv import kind, make

PYTHON = ("/usr/bin/python3", "3.11.7", ["/pip"])


@pytest.fixture
def given(tmp_path: Path) -> Callable[[str], Kept]:
    (tmp_path / "attempts").mkdir()

    def give(name: str) -> Kept:
        one = Kept(f"{tmp_path}/pool", f"{tmp_path}/attempts", name, lambda path: make(path, *PYTHON))
        one.take()
        return one

    return give


def test_what_was_not_touched_is_the_next_ones(given: Callable[[str], Kept], tmp_path: Path) -> None:
    first = given("1")
    before = (tmp_path / "attempts/1/bin/python").lstat().st_ino
    first.give_back()
    assert not (tmp_path / "attempts/1").exists()
    second = given("2")
    assert (tmp_path / "attempts/2/bin/python").lstat().st_ino == before
    second.give_back()  # also what was moved once
    given("3")
    assert (tmp_path / "attempts/3/bin/python").lstat().st_ino == before


def test_two_at_once_have_one_each(given: Callable[[str], Kept], tmp_path: Path) -> None:
    for one in (given("1"), given("2")):
        one.give_back()
    given("3")
    given("4")
    found = {(tmp_path / "attempts" / name).stat().st_ino for name in "34"}
    assert len(found) == 2
    assert os.listdir(tmp_path / "pool") == []


@pytest.mark.parametrize(
    "change",
    [
        lambda path: (path / "lib/python3.11/site-packages/new").touch(),
        lambda path: (path / "new").touch(),
        lambda path: (path / "bin/pip").write_text("other"),
        lambda path: (path / "bin/pip").chmod(0o700),
        lambda path: os.utime(path / "bin/pip"),
        lambda path: (path / "bin/pip3").unlink(),
        lambda path: (path / "bin").rename(path / "nib"),
        lambda path: path.chmod(0o777),
        lambda path: path.rename(path.with_name("away")),
        lambda path: [path.rename(path.with_name("away")), path.symlink_to("away")],
        lambda path: os.link(path / "bin/pip", path.parent / "link"),
        lambda path: os.setxattr(path / "bin", "user.x", b"x"),
    ],
)
def test_what_was_changed_is_nobodys(
    given: Callable[[str], Kept], tmp_path: Path, change: Callable[[Path], object]
) -> None:
    one = given("1")
    change(tmp_path / "attempts/1")
    one.give_back()
    assert os.listdir(tmp_path / "pool") == []


def test_times_that_were_set_back_hide_nothing(given: Callable[[str], Kept], tmp_path: Path) -> None:
    one = given("1")
    script = tmp_path / "attempts/1/bin/pip"
    before, text = script.stat(), script.read_text()
    script.write_text(text[::-1])
    os.utime(script, ns=(before.st_atime_ns, before.st_mtime_ns))
    one.give_back()
    assert os.listdir(tmp_path / "pool") == []


def test_a_link_in_place_of_the_folder_leads_nowhere(given: Callable[[str], Kept], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "attempts").rmdir()
    (tmp_path / "attempts").symlink_to("elsewhere")
    with pytest.raises(OSError, match="attempts"):
        given("1")
    assert os.listdir(tmp_path / "elsewhere") == []


def test_few_wait(given: Callable[[str], Kept], tmp_path: Path) -> None:
    for one in [given(str(number)) for number in range(12)]:
        one.give_back()
    assert len(os.listdir(tmp_path / "pool")) == 8


def test_other_environments_are_of_another_kind() -> None:
    assert kind(*PYTHON) == kind(*PYTHON)
    assert kind("/usr/bin/python3", "3.12.1", ["/pip"]) != kind(*PYTHON)
