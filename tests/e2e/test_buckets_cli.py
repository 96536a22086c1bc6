"""Buckets with the real command line: `hf buckets`, `hf cp`, `hf sync`; and what `runstead bucket` brings back."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from clients import Client, Server, make_client

NAMES = ["plain.txt", "a b.txt", "100%.txt", "#1?.txt", "x+y&z=.txt", "ünï/cödé 日本.txt", "q'uo\"te.txt", "%2F.txt"]


@pytest.fixture
def bucket(request: pytest.FixtureRequest, newest: Client) -> str:
    name = f"{newest.server.owner}/" + re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")
    newest.hf("buckets", "create", name, "--quiet")
    return name


def tree(client: Client, bucket: str, *words: str) -> list[dict[str, Any]]:
    said = client.hf("buckets", "list", bucket, "-R", "--json", *words).stdout
    return json.loads(said) if said.startswith("[") else []  # of an empty bucket it says so in words


def paths(client: Client, bucket: str) -> list[str]:
    return [entry["path"] for entry in tree(client, bucket)]


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return folder


def read(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_life_of_a_bucket(newest: Client, tmp_path: Path) -> None:
    owner = newest.server.owner
    made = newest.hf("buckets", "create", "life", "--private", "--json")
    assert json.loads(made.stdout)["uri"] == f"hf://buckets/{owner}/life"
    assert newest.hf("buckets", "create", "life", check=False).returncode != 0
    newest.hf("buckets", "create", "life", "--exist-ok")

    source = tmp_path / "r.bin"
    source.write_bytes(os.urandom(3_000_000))
    newest.hf("buckets", "cp", str(source), f"hf://buckets/{owner}/life/dir/r.bin")
    newest.hf("cp", str(source), f"hf://buckets/{owner}/life/")
    info = json.loads(newest.hf("buckets", "info", f"{owner}/life", "--json").stdout)
    assert (info["size"], info["total_files"], info["private"]) == (6_000_000, 2, True)
    assert paths(newest, f"{owner}/life") == ["dir/r.bin", "r.bin"]
    shallow = json.loads(newest.hf("buckets", "list", f"{owner}/life", "--json").stdout)
    assert [(entry["type"], entry["path"]) for entry in shallow] == [("directory", "dir"), ("file", "r.bin")]
    assert "r.bin" in newest.hf("buckets", "list", f"{owner}/life", "--tree").stdout

    newest.hf("buckets", "cp", f"hf://buckets/{owner}/life/dir/r.bin", str(tmp_path / "back.bin"))
    assert (tmp_path / "back.bin").read_bytes() == source.read_bytes()

    newest.hf("buckets", "settings", f"{owner}/life", "--public")
    newest.hf("buckets", "move", f"{owner}/life", f"{owner}/after-life")
    info = json.loads(newest.hf("buckets", "info", f"{owner}/after-life", "--json").stdout)
    assert info["private"] is False
    listed = json.loads(newest.hf("buckets", "list", "--search", "AFTER", "--json").stdout)
    assert [one["id"] for one in listed] == [f"{owner}/after-life"]
    newest.hf("cp", f"hf://buckets/{owner}/after-life/r.bin", str(tmp_path / "again.bin"))
    assert (tmp_path / "again.bin").read_bytes() == source.read_bytes()

    newest.hf("buckets", "rm", f"{owner}/after-life/r.bin", "--yes")
    newest.hf("buckets", "rm", f"{owner}/after-life/dir", "-R", "--yes")
    assert paths(newest, f"{owner}/after-life") == []
    newest.hf("buckets", "delete", f"{owner}/after-life", "--yes")
    gone = newest.hf("buckets", "info", f"{owner}/after-life", check=False)
    assert gone.returncode != 0
    assert "not found" in (gone.stdout + gone.stderr).lower()


def test_any_name_goes_up_and_down(newest: Client, bucket: str, tmp_path: Path) -> None:
    folder = fill(tmp_path / "up", {name: name.encode() for name in NAMES})
    newest.hf("sync", str(folder), f"hf://buckets/{bucket}")
    assert sorted(paths(newest, bucket)) == sorted(NAMES)
    newest.hf("sync", f"hf://buckets/{bucket}", str(tmp_path / "down"))
    assert read(tmp_path / "down") == {name: name.encode() for name in NAMES}
    for name in NAMES:
        out = newest.hf("cp", f"hf://buckets/{bucket}/{name}", "-", check=False)
        if "%" not in name and "?" not in name and "#" not in name:  # which the client reads as parts of an address
            assert out.stdout == name


def test_sync_goes_both_ways_and_moves_only_what_differs(newest: Client, bucket: str, tmp_path: Path) -> None:
    up = fill(tmp_path / "up", {"a.txt": b"a", "d/b.bin": os.urandom(200_000), "d/empty": b"", "e/f/c": b"c" * 70_000})
    remote = f"hf://buckets/{bucket}/backup"
    newest.hf("sync", str(up), remote)
    assert paths(newest, bucket) == ["backup/a.txt", "backup/d/b.bin", "backup/d/empty", "backup/e/f/c"]

    def plan(*words: str) -> dict[str, str]:
        lines = [json.loads(line) for line in newest.hf("sync", *words, "--dry-run").stdout.splitlines()]
        return {line["path"]: line["action"] for line in lines if line["type"] == "operation"}

    assert set(plan(str(up), remote).values()) <= {"skip"}
    down = tmp_path / "down"
    newest.hf("sync", remote, str(down))
    assert read(down) == read(up)
    assert set(plan(remote, str(down)).values()) <= {"skip"}

    (up / "a.txt").write_bytes(b"changed")
    (up / "d" / "b.bin").unlink()
    (up / "new").write_bytes(b"new")
    planned = {path: action for path, action in plan(str(up), remote, "--delete").items() if action != "skip"}
    assert planned == {"a.txt": "upload", "d/b.bin": "delete", "new": "upload"}
    newest.hf("sync", str(up), remote, "--delete")
    newest.hf("sync", remote, str(down), "--delete")
    assert read(down) == read(up)


def test_copies_between_buckets_send_no_content(newest: Client, bucket: str, tmp_path: Path) -> None:
    other = f"{bucket}-2"
    newest.hf("buckets", "create", other)
    folder = fill(tmp_path / "up", {"m/1.bin": os.urandom(300_000), "m/2/3.txt": b"three", "m/none": b""})
    newest.hf("sync", str(folder), f"hf://buckets/{bucket}")
    newest.hf("cp", f"hf://buckets/{bucket}/m/1.bin", f"hf://buckets/{bucket}/same.bin")
    newest.hf("cp", f"hf://buckets/{bucket}/m", f"hf://buckets/{other}/copied")
    assert paths(newest, other) == ["copied/1.bin", "copied/2/3.txt", "copied/none"]
    newest.hf("buckets", "delete", bucket, "--yes")
    newest.hf("sync", f"hf://buckets/{other}/copied", str(tmp_path / "down"))
    assert read(tmp_path / "down") == read(folder / "m")


def test_standard_input_and_output(newest: Client, bucket: str) -> None:
    done = subprocess.run(
        [str(newest.bin / "hf"), "cp", "-", f"hf://buckets/{bucket}/piped"],
        env=newest.environment,
        input=b"through a pipe\n",
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert newest.hf("cp", f"hf://buckets/{bucket}/piped", "-").stdout == "through a pipe\n"


def test_older_clients_of_their_time(client: Client, tmp_path: Path) -> None:
    """The lines 1.28 and 1.9 know buckets too, and speak with another upload protocol underneath."""
    bucket = f"{client.server.owner}/line-{client.version.replace('.', '-')}"
    folder = fill(tmp_path / "up", {"a.txt": b"a", "d/r.bin": os.urandom(1_000_000), "empty": b""})
    client.hf("buckets", "create", bucket)
    client.hf("buckets", "sync", str(folder), f"hf://buckets/{bucket}")
    client.hf("buckets", "sync", f"hf://buckets/{bucket}", str(tmp_path / "down"))
    assert read(tmp_path / "down") == read(folder)
    client.hf("buckets", "rm", f"{bucket}/d/r.bin", "--yes")
    client.hf("buckets", "delete", bucket, "--yes")


# What was


def test_the_past_can_be_had_again(newest: Client, bucket: str, tmp_path: Path) -> None:
    server: Server = newest.server
    folder = fill(tmp_path / "up", {"a.txt": b"first", "d/1": os.urandom(100_000), "d/2": b"two"})
    newest.hf("sync", str(folder), f"hf://buckets/{bucket}")
    before = read(folder)
    at = max(entry["uploaded_at"] for entry in tree(newest, bucket))

    (folder / "a.txt").write_bytes(b"a longer second")
    newest.hf("sync", str(folder), f"hf://buckets/{bucket}")
    newest.hf("buckets", "rm", f"{bucket}/d", "-R", "--yes")
    assert paths(newest, bucket) == ["a.txt"]

    kept = json.loads(server.run("bucket", "history", bucket, "--json").stdout)
    assert [(one["path"], one["size"]) for one in kept] == [("a.txt", 5), ("d/1", 100_000), ("d/2", 3)]
    assert "d/1" in server.run("bucket", "history", bucket, "d").stdout
    assert "a.txt" not in server.run("bucket", "history", bucket, "d").stdout

    assert "d/2" in server.run("bucket", "restore", bucket, "d/2", "--at", at).stdout
    assert paths(newest, bucket) == ["a.txt", "d/2"]
    server.run("bucket", "restore", bucket, "--all", "--at", at)
    newest.hf("sync", f"hf://buckets/{bucket}", str(tmp_path / "down"))
    assert read(tmp_path / "down") == before
    assert "is as it was" in server.run("bucket", "restore", bucket, "--all", "--at", at).stdout

    newest.hf("buckets", "delete", bucket, "--yes")
    missing = server.run("bucket", "history", bucket, check=False)
    assert missing.returncode == 1 and "--deleted" in missing.stderr
    server.run("bucket", "restore", bucket, "--deleted")
    assert paths(newest, bucket) == ["a.txt", "d/1", "d/2"]
    newest.hf("buckets", "cp", f"hf://buckets/{bucket}/d/1", str(tmp_path / "one"))
    assert (tmp_path / "one").read_bytes() == before["d/1"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("restore", "BUCKET"), "PATH"),
        (("restore", "BUCKET", "a", "--all", "--at", "1h"), "PATH"),
        (("restore", "BUCKET", "a"), "--at"),
        (("restore", "BUCKET", "a", "--at", "yesterday"), "yesterday"),
        (("restore", "BUCKET", "a", "--at", "9000d"), "30 days"),
        (("restore", "BUCKET", "a", "--at", "2999-01-01"), "2999"),
        (("restore", "nobody/nothing", "--all", "--at", "1h"), "nobody/nothing"),
        (("restore", "nobody/nothing", "--deleted"), "nobody/nothing"),
        (("history", "nothing"), "NAMESPACE/NAME"),
    ],
)
def test_what_cannot_be_restored(newest: Client, bucket: str, words: tuple[str, ...], reason: str) -> None:
    done = newest.server.run("bucket", *(bucket if word == "BUCKET" else word for word in words), check=False)
    assert done.returncode == 1
    assert reason in done.stderr


def test_a_killed_server_has_every_file_that_was_answered(own_server: Server, tmp_path: Path) -> None:
    client = make_client("2.4.0", own_server, tmp_path)
    bucket = f"{own_server.owner}/killed"
    folder = fill(tmp_path / "up", {f"{n}.bin": os.urandom(150_000) for n in range(5)})
    client.hf("buckets", "create", bucket)
    client.hf("sync", str(folder), f"hf://buckets/{bucket}")
    own_server.kill()
    own_server.start()
    client.hf("sync", f"hf://buckets/{bucket}", str(tmp_path / "down"))
    assert read(tmp_path / "down") == read(folder)
