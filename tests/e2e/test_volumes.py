"""Buckets mounted in jobs of a real server: what is accepted, what is in the bucket when, and what faults do."""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from calls import Answer, Api
from clients import Client, Server, eventually, make_client, volumes_server
from runstead.model.accounts import Permission
from runstead.model.volumes import MountCaller
from runstead.services.mount_tokens import MountTokens

WAYS = ("fill", "mount")


@pytest.fixture(scope="module", params=WAYS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One whose volumes are filled, then one whose volumes are mounted."""
    started = volumes_server(request.param, tmp_path_factory.mktemp("server") / "data", "--stop-jobs-at-exit").start()
    yield started
    started.stop()


@pytest.fixture(params=WAYS)
def own_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server that the test may kill."""
    started = volumes_server(request.param, tmp_path / "data").start()
    yield started
    if started.process is not None and started.process.poll() is not None:
        started.flags = (*started.flags, "--stop-jobs-at-exit")
        started.start()
    started.stop()


@pytest.fixture(scope="module")
def filled(server: Server, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bucket with two files in a folder."""
    return make_bucket(make_client("2.4.0", server, tmp_path_factory.mktemp("home")))


def make_bucket(client: Client) -> str:
    bucket = f"{client.server.owner}/b{os.urandom(4).hex()}"
    client.python(
        f"from huggingface_hub import HfApi; api = HfApi(); api.create_bucket({bucket!r}, private=True)\n"
        f"api.batch_bucket_files({bucket!r}, add=[(b'one', 'in/1.txt'), (b'two', 'in/sub/2.txt')])"
    )
    return bucket


@pytest.fixture
def api(server: Server) -> Api:
    return Api(server)


def volume(source: str, at: str = "/data", **more: Any) -> dict[str, Any]:
    return {"type": "bucket", "source": source, "mountPath": at, **more}


def files(api: Api, bucket: str, folder: str = "") -> dict[str, str]:
    listed = api.get(f"/api/buckets/{bucket}/tree/{folder}?recursive=true").json
    return {e["path"]: api.get(f"/buckets/{bucket}/resolve/{e['path']}").body.decode() for e in listed}


def said(server: Server, words: bytes) -> bool:
    """Say whether any job has written these words to its log."""
    return any(words in p.read_bytes() for p in (server.data_dir / "logs").rglob("*") if p.is_file())


def refused(answer: Answer, status: int, *words: str) -> None:
    assert answer.status == status, answer
    for word in words:
        assert word in answer.json["error"], answer


# What is accepted


@pytest.mark.parametrize(
    ("item", "status", "words"),
    [
        ({"type": "model", "source": "a/b", "mountPath": "/m"}, 501, ("volumes[0].type", "model", "not created")),
        ({"type": "dataset", "source": "a/b", "mountPath": "/m"}, 501, ("volumes[0].type", "dataset")),
        ({"type": "space", "source": "a/b", "mountPath": "/m"}, 501, ("volumes[0].type", "space")),
        ({"type": "bucket", "source": "nobody/none", "mountPath": "/m"}, 404, ("volumes[0].source", "nobody/none")),
        ({"type": "bucket", "source": "a", "mountPath": "/m"}, 400, ("volumes[0].source", "owner/name")),
        ({"type": "bucket", "source": "BUCKET", "mountPath": "m"}, 400, ("volumes[0].mountPath", "absolute")),
        ({"type": "bucket", "source": "BUCKET", "mountPath": "/"}, 400, ("volumes[0].mountPath", "root")),
        ({"type": "bucket", "source": "BUCKET", "mountPath": "/a/../b"}, 400, ("volumes[0].mountPath", "'..'")),
        ({"type": "bucket", "source": "BUCKET", "mountPath": "/a/"}, 400, ("volumes[0].mountPath",)),
        ({"type": "bucket", "source": "BUCKET", "mountPath": "//a"}, 400, ("volumes[0].mountPath",)),
        ({"type": "bucket", "source": "BUCKET", "mountPath": "/a\0b"}, 400, ("volumes[0].mountPath", "control")),
        ({"type": "bucket", "source": "BUCKET", "mountPath": "/etc/x"}, 400, ("volumes[0].mountPath", "/etc")),
        ({"type": "bucket", "source": "BUCKET", "mountPath": "/runstead"}, 400, ("volumes[0].mountPath", "/runstead")),
        ({"type": "bucket", "source": "BUCKET", "mountPath": "/root"}, 400, ("volumes[0].mountPath", "home")),
        ({"type": "bucket", "source": "BUCKET", "mountPath": "/d", "path": "none"}, 400, ("volumes[0].path", "none")),
        (
            {"type": "bucket", "source": "BUCKET", "mountPath": "/d", "path": "in/1.txt"},
            400,
            ("volumes[0].path", "file"),
        ),
        ({"type": "bucket", "source": "BUCKET", "mountPath": "/d", "path": "in/.."}, 400, ("volumes[0].path", "'..'")),
        ({"type": "bucket", "source": "BUCKET", "mountPath": "/d", "revision": "main"}, 400, ("volumes[0].revision",)),
    ],
)
def test_what_can_be_no_volume_is_refused_with_its_reason(
    api: Api, filled: str, item: dict[str, Any], status: int, words: tuple[str, ...]
) -> None:
    item = {**item, "source": filled if item["source"] == "BUCKET" else item["source"]}
    before = api.count()
    body = {"command": ["true"], "dockerImage": "x", "volumes": [item]}
    refused(api.post(f"/api/jobs/{api.server.owner}", body), status, *words)
    assert api.count() == before


@pytest.mark.parametrize("second", ["/data", "/data/inner", "/"])
def test_volumes_do_not_cover_each_other(api: Api, filled: str, second: str) -> None:
    body = {"command": ["true"], "dockerImage": "x", "volumes": [volume(filled), volume(filled, second)]}
    refused(api.post(f"/api/jobs/{api.server.owner}", body), 400, "volumes[1].mountPath")


def test_only_what_the_creator_may_is_mounted(server: Server, tmp_path: Path, filled: str) -> None:
    server.run("user", "add", "eve")
    eve = Api(server, server.run("token", "add", "eve", "--role", "write").stdout.strip())
    body = {"command": ["true"], "dockerImage": "x", "volumes": [volume(filled)]}
    refused(eve.post("/api/jobs/eve", body), 404, "volumes[0].source", filled)
    owner = Api(server)
    owner.put(f"/api/buckets/{filled}/settings", {"private": False})
    try:
        refused(eve.post("/api/jobs/eve", body), 403, "volumes[0].source", "read-only")
        done = eve.submit("cat", "/data/in/1.txt", namespace="eve", volumes=[volume(filled, readOnly=True)])
        assert eventually(lambda: eve.job(done["id"], "eve")["status"]["stage"] == "COMPLETED", 30)
    finally:
        owner.put(f"/api/buckets/{filled}/settings", {"private": True})


def test_a_job_says_its_volumes_and_a_rerun_has_them_too(api: Api, filled: str) -> None:
    asked = [volume(filled, "/data", path="in"), volume(filled, "/all", readOnly=True)]
    job = api.shell("cat /data/sub/2.txt", volumes=asked)
    said = [
        {"type": "bucket", "source": filled, "mountPath": "/data", "readOnly": False, "path": "in"},
        {"type": "bucket", "source": filled, "mountPath": "/all", "readOnly": True},
    ]
    assert job["volumes"] == said
    assert api.ended(job["id"])["status"]["stage"] == "COMPLETED"
    again = api.post(f"/api/jobs/{api.server.owner}/{job['id']}/duplicate").json
    assert again["volumes"] == said
    api.ended(again["id"])
    assert "two" in api.lines(again["id"])


# What a job sees


@pytest.mark.parametrize(
    "at", ["/data", "/a/b/c", "/mnt/x/y", "/opt/x", "/workspace/v", "/root/.cache/v", "/tmp/v", "/var/lib/v", "/home/v"]
)
def test_a_volume_may_be_at_any_path(api: Api, filled: str, at: str) -> None:
    name = f"made-at{at.replace('/', '-')}"
    job = api.shell(f"set -e; cat {at}/in/1.txt; echo new > {at}/{name}", volumes=[volume(filled, at)])
    ended = api.ended(job["id"])
    assert ended["status"]["stage"] == "COMPLETED", (ended["status"], api.lines(job["id"]))
    assert files(api, filled)[name] == "new\n"


def test_a_server_that_is_not_root_has_volumes_too(tmp_path: Path) -> None:
    program = ("unshare", "--user", "--map-root-user", sys.executable, "-m", "runstead.cli")
    server = Server(tmp_path / "data", ("--stop-jobs-at-exit",), program=program).start()
    try:
        api, bucket = Api(server), make_bucket(make_client("2.4.0", server, tmp_path))
        for at in ("/data", "/mnt/new", "/workspace/new"):
            job = api.shell(f"set -e; cat {at}/in/1.txt; echo > {at}/out{at[1:3]}", volumes=[volume(bucket, at)])
            assert api.ended(job["id"])["status"]["stage"] == "COMPLETED", api.lines(job["id"])
        assert {"outda", "outmn", "outwo"} <= set(files(api, bucket))
    finally:
        server.stop()


def test_jobs_that_end_with_their_server_save_what_they_wrote(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", ("--stop-jobs-at-exit",)).start()
    api, bucket = Api(server), make_bucket(make_client("2.4.0", server, tmp_path))
    job = api.shell("echo x > /data/x; echo is ready; sleep 100", volumes=[volume(bucket)])
    assert eventually(lambda: said(server, b"is ready"), 30)
    server.stop()
    server.start()
    try:
        assert api.stage(job["id"]) == "CANCELED"
        assert files(api, bucket)["x"] == "x\n"
    finally:
        server.stop()


def test_what_is_read_only_cannot_be_written(api: Api, filled: str) -> None:
    job = api.shell("echo x > /data/in/1.txt || rm /data/in/1.txt", volumes=[volume(filled, readOnly=True)])
    ended = api.ended(job["id"])
    assert ended["status"]["failureClass"] == "user"
    assert "Read-only file system" in " ".join(api.lines(job["id"]))
    assert files(api, filled)["in/1.txt"] == "one"


def test_the_files_belong_to_the_job_and_to_nobody_else_in_it(api: Api, filled: str) -> None:
    job = api.shell("stat -c '%u %a' /data /data/in /data/in/1.txt; touch /data/in/1.txt", volumes=[volume(filled)])
    assert api.ended(job["id"])["status"]["stage"] == "COMPLETED"
    assert [line for line in api.lines(job["id"]) if line.startswith("0 ")] == ["0 777", "0 777", "0 666"]


def test_what_cannot_be_stored_is_named_in_the_log(api: Api, filled: str) -> None:
    job = api.shell("ln -s /etc/passwd /data/link; echo f > /data/file", volumes=[volume(filled)])
    assert api.ended(job["id"])["status"]["stage"] == "COMPLETED"
    assert any("'link' is not saved: it is a symbolic link" in line for line in api.lines(job["id"]))
    assert "link" not in files(api, filled)


# When it is in the bucket


@pytest.mark.parametrize(
    ("script", "more", "stage", "words"),
    [
        ("echo r > /data/NAME", {}, "COMPLETED", "saved 1 file (2 bytes)"),
        ("echo r > /data/NAME; exit 3", {}, "ERROR", "user: the command exited with code 3; saved 1 file"),
        ("echo r > /data/NAME; sleep 60", {"timeoutSeconds": 1}, "ERROR", "timeout: Job timeout after 1 s"),
        ("echo r > /data/NAME; kill -9 $$", {}, "ERROR", "user: the command was ended by signal 9"),
    ],
)
def test_however_a_job_ends_what_it_wrote_is_in_the_bucket_when_it_says_so(
    api: Api, filled: str, script: str, more: dict[str, Any], stage: str, words: str
) -> None:
    name = f"n{os.urandom(4).hex()}"
    job = api.shell(script.replace("NAME", name), volumes=[volume(filled)], **more)
    status = api.ended(job["id"], 60)["status"]
    assert files(api, filled)[name] == "r\n"
    assert status["stage"] == stage
    assert words in status["message"]


def test_what_a_job_wrote_is_listed_long_after_it(api: Api, server: Server, filled: str) -> None:
    name = f"o{os.urandom(4).hex()}"
    script = f"mkdir /data/{name}; cd /data/{name}; echo one > 1; echo two > 2; rm 2; : > 3"
    job = api.shell(script, volumes=[volume(filled, path="in")])
    message = api.ended(job["id"])["status"]["message"]
    assert message == f"saved 2 files (4 bytes) to {filled}"
    history = api.get(f"/api/jobs/{api.server.owner}/{job['id']}/history").json
    assert history[-1]["message"] == message
    listed = api.get(f"/api/jobs/{api.server.owner}/{job['id']}/outputs").json
    digits = api.get(f"/api/buckets/{filled}/tree/in/{name}").json[0]["xetHash"]
    assert listed == [
        {"bucket": filled, "path": f"in/{name}/1", "size": 4, "xetHash": digits, "attempt": 1},
        {"bucket": filled, "path": f"in/{name}/3", "size": 0, "xetHash": "0" * 64, "attempt": 1},
    ]
    refused(Api(server, "").get(f"/api/jobs/{api.server.owner}/{job['id']}/outputs"), 401)
    said = server.run("job", "outputs", job["id"]).stdout.splitlines()
    assert said == [
        f"{digits}               4  {filled}/in/{name}/1",
        f"{'0' * 64}               0  {filled}/in/{name}/3",
        "2 files, 4 bytes",
    ]
    as_json = server.run("job", "outputs", job["id"], "--json").stdout.splitlines()
    assert [json.loads(line) for line in as_json] == listed
    none = api.shell("true", volumes=[volume(filled)])
    api.ended(none["id"])
    assert server.run("job", "outputs", none["id"]).stdout == "0 files, 0 bytes\n"
    assert "there is no such job" in server.run("job", "outputs", "0" * 24, check=False).stderr


def test_a_canceled_job_saves_what_it_wrote(api: Api, filled: str) -> None:
    job = api.shell("echo r > /data/canceled; echo is ready; sleep 100", volumes=[volume(filled)])
    assert eventually(lambda: said(api.server, b"is ready"), 30)
    api.cancel(job["id"])
    assert api.ended(job["id"])["status"]["stage"] == "CANCELED"
    assert files(api, filled)["canceled"] == "r\n"


def test_the_next_attempt_sees_what_the_last_one_wrote(api: Api, filled: str) -> None:
    script = "if [ -e /data/checkpoint ]; then cat /data/checkpoint; else echo first > /data/checkpoint; exit 1; fi"
    job = api.shell(script, volumes=[volume(filled)], attempts=2)
    assert api.ended(job["id"], 60)["status"]["stage"] == "COMPLETED"
    assert "first" in api.lines(job["id"])


def test_nothing_of_a_volume_is_left_on_the_machine(api: Api, server: Server, filled: str) -> None:
    job = api.shell("echo > /data/x", volumes=[volume(filled)])
    api.ended(job["id"])
    left = server.data_dir / "node" / "volumes"
    assert eventually(lambda: not [p for p in left.iterdir() if p.name.startswith((job["id"], ".trash"))], 10)
    assert list((server.data_dir / "node" / "unsaved").iterdir()) == []


# Tokens


class _NoJobs:
    async def get(self, job_id: str) -> None: ...


def mount_token(server: Server, job: str, bucket_id: str, permission: Permission, **more: Any) -> str:
    from runstead.kit.clock import SystemClock

    tokens = MountTokens((server.data_dir / "secret.key").read_bytes(), _NoJobs(), SystemClock())  # type: ignore[arg-type]
    until = datetime.now(UTC) + timedelta(**(more or {"hours": 1}))
    return tokens.mint(MountCaller(job, 1, {bucket_id: permission}), until)


def test_a_token_of_a_volume_reaches_its_bucket_and_nothing_else(
    api: Api, server: Server, filled: str, tmp_path: Path
) -> None:
    other = make_bucket(make_client("2.4.0", server, tmp_path))
    job = api.shell("sleep 100", volumes=[volume(filled)])
    ids = {path: api.get(f"/api/buckets/{path}").json["_id"] for path in (filled, other)}
    writer = Api(server, mount_token(server, job["id"], ids[filled], Permission.WRITE))
    reader = Api(server, mount_token(server, job["id"], ids[filled], Permission.READ))
    for one in (writer, reader):
        assert one.get(f"/api/buckets/{filled}").status == 200
        assert one.get(f"/api/buckets/{filled}/tree?recursive=true").status == 200
        assert one.get(f"/buckets/{filled}/resolve/in/1.txt").body == b"one"
        assert one.get(f"/api/buckets/{filled}/xet-read-token").status == 200
        assert one.get(f"/api/buckets/{other}").status == 404
        assert one.get(f"/buckets/{other}/resolve/in/1.txt").status == 404
        assert one.get(f"/api/buckets/{other}/xet-read-token").status == 404
        for path in ("/api/whoami-v2", f"/api/jobs/{server.owner}", f"/api/jobs/{server.owner}/{job['id']}"):
            assert one.get(path).status == 401, path
        assert one.get(f"/api/buckets/{server.owner}").status == 401
        assert one.post(f"/api/buckets/{server.owner}/new", {}).status == 401
        assert one.put(f"/api/buckets/{filled}/settings", {"private": False}).status == 401
        assert one.call("DELETE", f"/api/buckets/{filled}").status == 401
        assert one.post(f"/api/jobs/{server.owner}", {"command": ["true"], "dockerImage": "x"}).status == 401
    line = b'{"type": "deleteFile", "path": "none"}\n'
    assert writer.get(f"/api/buckets/{filled}/xet-write-token").status == 200
    assert writer.post(f"/api/buckets/{filled}/batch", line).status == 200
    assert reader.get(f"/api/buckets/{filled}/xet-write-token").status == 403
    assert reader.post(f"/api/buckets/{filled}/batch", line).status == 403
    late = Api(server, mount_token(server, job["id"], ids[filled], Permission.WRITE, seconds=-1))
    assert late.get(f"/api/buckets/{filled}").status == 401
    forged = Api(server, (writer.token or "")[:-4] + "AAAA")
    assert forged.get(f"/api/buckets/{filled}").status == 401
    api.cancel(job["id"])
    api.ended(job["id"])
    assert eventually(lambda: writer.get(f"/api/buckets/{filled}").status == 401, 10)


def test_no_token_is_found_in_a_job_or_on_the_machine(api: Api, server: Server, filled: str) -> None:
    job = api.shell("env; cat /proc/mounts; sleep 2; echo x > /data/t", volumes=[volume(filled)])
    node = server.data_dir / "node"
    assert eventually(lambda: api.stage(job["id"]) == "RUNNING", 20)
    for path in node.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 1_000_000:
            assert b"rsv1." not in path.read_bytes(), path
    api.ended(job["id"])
    assert not any("rsv1." in line for line in api.lines(job["id"]))
    assert "rsv1." not in server.log.read_text()


# Faults


@pytest.fixture
def fallible(own_server: Server, tmp_path: Path) -> Iterator[tuple[Api, str]]:
    yield Api(own_server), make_bucket(make_client("2.4.0", own_server, tmp_path))


def test_a_server_that_dies_while_the_job_runs_saves_it_afterwards(fallible: tuple[Api, str]) -> None:
    api, bucket = fallible
    job = api.shell("sleep 2; echo late > /data/late", volumes=[volume(bucket)])
    assert eventually(lambda: api.stage(job["id"]) == "RUNNING", 20)
    api.server.kill()
    time.sleep(3)
    api.server.start()
    assert api.ended(job["id"], 40)["status"]["stage"] == "COMPLETED"
    assert files(api, bucket)["late"] == "late\n"


def test_a_server_that_dies_while_it_saves_goes_on(fallible: tuple[Api, str]) -> None:
    api, bucket = fallible
    script = "for i in $(seq 40); do head -c 5000000 /dev/urandom > /data/big$i; done"
    job = api.shell(script, volumes=[volume(bucket)])
    for _ in range(3):
        assert eventually(lambda: "saving what it wrote" in str(api.job(job["id"])["status"]["message"]), 60)
        time.sleep(0.7)
        api.server.kill()
        api.server.start()
        if api.stage(job["id"]) != "RUNNING":
            break
    ended = api.ended(job["id"], 90)
    assert ended["status"]["stage"] == "COMPLETED", ended["status"]
    listed = api.get(f"/api/buckets/{bucket}/tree?recursive=true").json
    assert len([e for e in listed if e["path"].startswith("big") and e["size"] == 5_000_000]) == 40


def test_a_supervisor_that_dies_loses_no_file(fallible: tuple[Api, str]) -> None:
    api, bucket = fallible
    job = api.shell("echo kept > /data/kept; sync; echo ready; sleep 100", volumes=[volume(bucket)])
    assert eventually(lambda: said(api.server, b"ready"), 30)
    facts = json.loads((api.server.data_dir / "node" / "attempts" / f"{job['id']}-1" / "attempt.json").read_text())
    os.kill(facts["supervisor"], signal.SIGKILL)
    status = api.ended(job["id"], 40)["status"]
    assert (status["stage"], status["failureClass"]) == ("ERROR", "infra")
    assert files(api, bucket)["kept"] == "kept\n"


@pytest.fixture
def mounting(tmp_path: Path) -> Iterator[tuple[Api, str]]:
    """A server of one test that mounts volumes, and a bucket."""
    server = volumes_server("mount", tmp_path / "data", "--stop-jobs-at-exit").start()
    yield Api(server), make_bucket(make_client("2.4.0", server, tmp_path))
    server.stop()
    assert mounts_of(server) == []


def mounts_of(server: Server) -> list[str]:
    with open("/proc/self/mountinfo", encoding="utf-8") as lines:
        return [line.split()[4] for line in lines if " - fuse." in line and str(server.data_dir) in line]


def programs_of(server: Server) -> list[int]:
    """Return the programs that serve the mounts of a server."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"runstead.node.fuse.keeper" in b"".join(words) and str(server.data_dir).encode() in words:
            found.append(int(path.parent.name))
    return found


def test_another_job_sees_a_closed_file_within_two_seconds(mounting: tuple[Api, str]) -> None:
    api, bucket = mounting
    script = "ls /data/in; echo waits; until [ -e /data/in/new ]; do sleep 0.05; done; cat /data/in/new; date +%s.%N"
    reader = api.shell(script, volumes=[volume(bucket, readOnly=True)])
    assert eventually(lambda: said(api.server, b"waits"), 30)
    writer = api.shell("echo seen > /data/in/new; date +%s.%N; sleep 5", volumes=[volume(bucket)])
    assert api.ended(reader["id"], 40)["status"]["stage"] == "COMPLETED"
    assert "seen" in api.lines(reader["id"])
    api.ended(writer["id"], 40)
    stamps = [re.findall(r"^\d+\.\d{9}$", "\n".join(api.lines(i["id"])), re.MULTILINE) for i in (writer, reader)]
    closed, shown = (float(found[0]) for found in stamps)
    assert shown - closed < 2


def test_when_all_programs_of_a_mount_die_what_was_closed_is_saved(mounting: tuple[Api, str]) -> None:
    api, bucket = mounting
    script = "echo closed > /data/closed; echo is ready; until [ -e /tmp/go ] || ! ls /data; do sleep 0.1; done; exit 7"
    job = api.shell(script, volumes=[volume(bucket)])
    assert eventually(lambda: said(api.server, b"is ready"), 30)
    killed = programs_of(api.server)
    assert len(killed) == 2
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    status = api.ended(job["id"], 60)["status"]
    assert status["stage"] == "ERROR"
    assert status["message"].startswith("user: the command exited with code 7")
    assert files(api, bucket)["closed"] == "closed\n"
    assert eventually(lambda: mounts_of(api.server) == [], 5)
    again = api.shell("cat /data/closed", volumes=[volume(bucket)])
    assert api.ended(again["id"], 40)["status"]["stage"] == "COMPLETED"


def test_a_bucket_that_is_gone_when_all_was_saved(fallible: tuple[Api, str]) -> None:
    """Only mounts save while the job runs; the message does not speak of files that nobody misses."""
    api, bucket = fallible
    job = api.shell("echo saved > /data/out; echo is closed; sleep 4", volumes=[volume(bucket)])
    assert eventually(lambda: said(api.server, b"is closed"), 30)
    mounted = eventually(lambda: "out" in files(api, bucket), 2)
    assert api.call("DELETE", f"/api/buckets/{bucket}").status == 200
    status = api.ended(job["id"], 40)["status"]
    assert (status["stage"], status["failureClass"]) == ("ERROR", "volume")
    assert ("nothing that was closed is missing" in status["message"]) == mounted
    assert ("runstead job recover" in status["message"]) != mounted


def test_what_cannot_be_saved_is_kept_and_recovered(fallible: tuple[Api, str]) -> None:
    api, bucket = fallible
    server = api.server
    # What is closed before the bucket is gone may be in it; what is opened afterwards is refused to the program.
    script = "mkdir /data/d; exec 3>/data/out 4>/data/d/e; echo is open; sleep 4; echo precious >&3; echo p >&4"
    job = api.shell(script, volumes=[volume(bucket)])
    assert eventually(lambda: said(server, b"is open"), 30)
    assert api.call("DELETE", f"/api/buckets/{bucket}").status == 200
    status = api.ended(job["id"], 40)["status"]
    assert (status["stage"], status["failureClass"]) == ("ERROR", "volume")
    kept = server.data_dir / "node" / "unsaved" / f"{job['id']}-1"
    assert str(kept) in status["message"]
    assert f"runstead job recover {job['id']}" in status["message"]
    assert eventually(lambda: kept.is_dir(), 10)
    assert (kept / "0" / "out").read_text() == "precious\n"
    failed = server.run("job", "recover", job["id"], check=False)
    assert failed.returncode == 1
    assert "deleted" in failed.stderr
    server.kill()
    server.start()  # what is kept outlives restarts
    server.run("bucket", "restore", bucket, "--deleted")
    told = server.run("job", "recover", job["id"]).stdout
    assert "attempt 1: 2 files, 11 bytes are in its buckets" in told
    assert files(api, bucket) == {"in/1.txt": "one", "in/sub/2.txt": "two", "out": "precious\n", "d/e": "p\n"}
    assert not kept.exists()
    again = server.run("job", "recover", job["id"], check=False)
    assert "nothing is kept of this job" in again.stderr
