"""Control groups of version 2, on a directory that stands in for one: this machine may have another version."""

import os
from pathlib import Path

import pytest

from runstead.node import cgroups


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A delegated group with this process in it."""
    group = tmp_path / "user.slice" / "app.service"
    group.mkdir(parents=True)
    (group / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    (group / "cgroup.subtree_control").write_text("")
    (group / "cgroup.procs").write_text(f"{os.getpid()}\n")
    monkeypatch.setattr(cgroups, "_groups_of", lambda _process: {"": "/user.slice/app.service"})
    monkeypatch.setattr(cgroups, "_mounts", lambda *, every=False: [("v2", str(tmp_path))])
    real = os.makedirs

    def make(path: str, mode: int = 0o777, exist_ok: bool = False) -> None:
        real(path, mode, exist_ok)
        for name in ("cgroup.subtree_control", "cgroup.procs"):
            Path(path, name).touch()

    monkeypatch.setattr(cgroups.os, "makedirs", make)
    return group


def test_a_delegated_group_is_used(tree: Path) -> None:
    places, missing = cgroups.find_places("runstead-x")
    assert (places, missing) == ([["v2", str(tree / "runstead-x")]], [])
    assert (tree / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    assert (tree / "runstead-x" / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    assert (tree / "runstead-server" / "cgroup.procs").read_text() == str(os.getpid())


def test_a_group_with_strangers_is_left_alone(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups.os, "geteuid", lambda: 1000)
    (tree / "cgroup.procs").write_text(f"{os.getpid()}\n1\n")
    places, missing = cgroups.find_places("runstead-x")
    assert places == []
    assert len(missing) == 3
    assert "memory" in missing[0]
    assert "other processes" in missing[0]


def test_what_is_not_handed_down_is_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups.os, "geteuid", lambda: 1000)
    (tree / "cgroup.controllers").write_text("cpu pids\n")
    places, missing = cgroups.find_places("runstead-x")
    assert places == []
    assert "not handed down: memory" in missing[0]
    assert "Delegate=yes" in missing[0]


def test_limits_and_counters(tmp_path: Path) -> None:
    group = cgroups.Group([["v2", str(tmp_path)]], "job")
    path = tmp_path / "job"
    path.mkdir()
    for name in ("cpu.max", "memory.max", "memory.swap.max", "pids.max", "cgroup.procs"):
        (path / name).touch()
    group.create(cpu_millicores=1500, memory_bytes=1 << 30, pids_limit=99)
    assert (path / "cpu.max").read_text() == "150000 100000"
    assert (path / "memory.max").read_text() == str(1 << 30)
    assert (path / "memory.swap.max").read_text() == "0"
    assert (path / "pids.max").read_text() == "99"
    group.enter(42)
    assert group.members() == {42}
    assert group.memory_kills() == 0
    (path / "memory.events").write_text("low 0\nhigh 0\nmax 5\noom 1\noom_kill 3\n")
    (path / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\n")
    (path / "memory.current").write_text("1000\n")
    (path / "memory.stat").write_text("anon 1\ninactive_file 400\n")
    assert (group.memory_kills(), group.cpu_seconds(), group.memory_bytes()) == (3, 2.5, 600)


def test_without_any_groups_there_is_nothing_to_say() -> None:
    group = cgroups.Group([], "job")
    group.create(cpu_millicores=1, memory_bytes=1, pids_limit=1)
    assert (group.memory_kills(), group.cpu_seconds(), group.memory_bytes()) == (0, None, None)
    assert group.remove()
    assert not group.kill()
