"""Deleting what a job left, whatever it left."""

import os
from pathlib import Path

from runstead.node.removal import delete_tree


def test_links_are_deleted_and_not_followed(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "link").symlink_to(precious)
    (tree / "up").symlink_to("..")
    (tmp_path / "top").symlink_to(precious)
    delete_tree(str(tree))
    delete_tree(str(tmp_path / "top"))
    delete_tree(str(tmp_path / "nothing"))
    delete_tree(str(tmp_path / "no" / "thing"))
    assert sorted(os.listdir(tmp_path)) == ["precious"]
    assert (precious / "file").exists()


def test_a_parent_that_is_a_link_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "real" / "x").mkdir(parents=True)
    (tmp_path / "venvs").symlink_to("real")
    delete_tree(str(tmp_path / "venvs" / "x"))
    assert (tmp_path / "real" / "x").exists()


def test_deep_and_closed_trees(tmp_path: Path) -> None:
    home = os.open(tmp_path, os.O_RDONLY)
    os.mkdir(tmp_path / "tree")
    here = os.open(tmp_path / "tree", os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d" * 40, dir_fd=here)
        below = os.open("d" * 40, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.fchmod(here, 0)
    os.close(here)
    os.chmod(tmp_path / "tree", 0o500)
    delete_tree(str(tmp_path / "tree"))
    assert os.listdir(home) == []
    os.close(home)
