"""The sandbox protocol as it is on the wire, in a dedicated sandbox."""

import json
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import sandboxes
from calls import Api
from clients import Server, eventually
from sandboxes import RawSandbox


@pytest.fixture(scope="module", params=sandboxes.EXECUTORS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with sandboxes.serving(request.param, tmp_path_factory) as started:
        yield started


@pytest.fixture(scope="module")
def box(server: Server) -> Iterator[RawSandbox]:
    made = sandboxes.create(server, environment={"FROM_ENV": "1"}, secrets={"A_SECRET": "s3cret"})
    yield made
    made.cancel()


# The job


def test_what_was_sent_comes_back_as_it_was(box: RawSandbox) -> None:
    job = Api(box.server).job(box.id)
    sent = sandboxes.create_body("", environment={"FROM_ENV": "1"})
    for key in ("command", "arguments", "environment", "flavor", "dockerImage", "labels", "volumes"):
        assert job[key] == sent[key], key
    assert job["secrets"] == ["A_SECRET", "SBX_TOKEN"]
    assert job["status"]["stage"] == "RUNNING"
    assert job["status"]["exposeUrls"] == box.job["status"]["exposeUrls"]
    assert job["initiator"]["type"] == "user"


def test_the_log_says_what_it_is(box: RawSandbox) -> None:
    path = f"/api/jobs/{box.server.owner}/{box.id}/logs"
    with Api(box.server).stream(path) as events:
        text = next(event for event in events if "sandbox" in str(event))
    assert "this is a sandbox; the server answers for it on port 49983, and its command is not run" in str(text)


def test_labels_may_change_and_it_stays_reachable(box: RawSandbox) -> None:
    path = f"/api/jobs/{box.server.owner}/{box.id}/labels"
    labels = Api(box.server).put(path, {"labels": {"name": "mine"}}).json["labels"]
    assert labels == {**sandboxes.create_body("")["labels"], "name": "mine"}


def test_health_says_more_to_who_has_the_token(box: RawSandbox) -> None:
    found = box.call("GET", "~/health").json
    assert found.pop("uptime_ms") >= 0
    assert found.pop("version")
    assert found == {"status": "ok", "protocol": 3, "mode": "dedicated", "sandboxes": 1}
    anonymous = box.call("GET", "~/health", headers={"X-Sandbox-Token": "wrong"})
    assert (anonymous.status, anonymous.json) == (200, {"status": "ok", "protocol": 3})


def test_nobody_gets_in_without_both_tokens(box: RawSandbox) -> None:
    for token in ("", "wrong", box.token + "0", box.token[:-1], "ü"):
        assert "X-Sandbox-Token" in box.refused(403, "GET", "/processes", headers={"X-Sandbox-Token": token})
    assert box.call("GET", "/processes", headers={"Authorization": ""}).status == 401
    assert box.call("GET", "/processes", headers={"Authorization": "Bearer wrong"}).status == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "~/"), ("GET", "~/v2"), ("GET", "/exec"), ("POST", "/files/read"), ("GET", "/nothing"), ("GET", "~/v1")],
)
def test_there_is_nothing_at_other_addresses(box: RawSandbox, method: str, path: str) -> None:
    assert box.refused(404, method, path)


def test_a_dedicated_sandbox_is_no_host(box: RawSandbox) -> None:
    assert "no such address" in box.refused(404, "GET", "~/v1/sandboxes")
    assert box.refused(404, "POST", "~/v1/sandboxes", {"count": 1})
    assert box.refused(404, "GET", "~/v1/sandboxes/0123456789abcdef/processes")


# Commands


def test_a_command_tells_its_whole_story(box: RawSandbox) -> None:
    events = list(box.events("echo out; echo err >&2; exit 3"))
    assert events[0]["event"] == "start" and events[0]["pid"] > 0
    assert {"event": "stdout", "data": "out\n"} in events
    assert {"event": "stderr", "data": "err\n"} in events
    assert events[-1].pop("duration_ms") >= 0
    assert events[-1] == {"event": "exit", "exit_code": 3, "signal": None, "timed_out": False}


def test_words_are_not_read_by_a_shell(box: RawSandbox) -> None:
    assert box.run(["printf", "%s|", "$HOME", "a b", ""])[0] == "$HOME|a b||"


def test_environment_folder_and_input(box: RawSandbox) -> None:
    assert box.shell("echo $FROM_ENV $A_SECRET $X $Y", env={"X": 1, "Y": True}) == "1 s3cret 1 true\n"
    assert box.shell("pwd", cwd="/tmp") == "/tmp\n"
    assert box.shell("cat; echo .", stdin="typed\n") == "typed\n.\n"
    assert box.shell("cat; echo .") == ".\n"
    assert box.shell("head -c 5", stdin="x" * 10_000_000) == "xxxxx"


def test_nothing_inside_knows_the_token(box: RawSandbox) -> None:
    everything = box.shell("env; cat /proc/1/environ 2>/dev/null | tr '\\0' '\\n'; cat /proc/*/cmdline | tr '\\0' ' '")
    assert box.token not in everything
    for hidden in ("SBX_TOKEN", "SBX_SERVER_URL", "SBX_SERVER_MOUNT", "SBX_SERVER_SHA256"):
        assert hidden not in everything
    assert "SBX_PORT=49983" in everything and "SBX_IDLE_TIMEOUT=600" in everything


@pytest.mark.parametrize(
    "body",
    [
        {"cmd": ["no-such-program"]},
        {"cmd": "true", "cwd": "/no/such/folder"},
        {"cmd": []},
        {"cmd": "x", "shell": False},
        {"cmd": ["x"], "shell": True},
        {"cmd": "x", "timeout": "soon"},
        {},
    ],
)
def test_what_cannot_be_started_is_an_error_and_no_event(box: RawSandbox, body: dict[str, Any]) -> None:
    assert box.refused(400, "POST", "/exec", body)
    assert box.refused(400, "POST", "/processes", body | {"timeout": None} if body.get("timeout") != "soon" else {})


def test_bad_bodies_are_refused(box: RawSandbox) -> None:
    assert "not valid JSON" in box.refused(400, "POST", "/exec", b"{")
    assert "JSON object" in box.refused(400, "POST", "/exec", b"[1]")
    assert "not valid JSON" in box.refused(400, "POST", "/exec", b"[" * 100_000)
    assert box.refused(413, "POST", "/exec", b" " * (16 * 2**20 + 1))


def test_a_timeout_ends_all_that_the_command_started(box: RawSandbox) -> None:
    began = time.monotonic()
    _, _, end = box.run("sleep 1000 & setsid sleep 1001 & sleep 1002", timeout=0.3)
    assert time.monotonic() - began < 10
    assert (end["exit_code"], end["signal"], end["timed_out"]) == (None, 9, True)
    assert eventually(lambda: "sleep 100" not in _processes(box))


def _processes(box: RawSandbox) -> str:
    return box.shell("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '")


def test_output_arrives_while_the_command_runs(box: RawSandbox) -> None:
    events = box.events("echo one; read x < /tmp/go; echo two")
    box.shell("rm -f /tmp/go; mkfifo /tmp/go")
    events = box.events("echo one; read x < /tmp/go; echo $x")
    assert next(events)["event"] == "start"
    assert next(events) == {"event": "stdout", "data": "one\n"}
    box.shell("echo two > /tmp/go")
    assert next(events) == {"event": "stdout", "data": "two\n"}
    assert next(events)["exit_code"] == 0


def test_who_goes_away_takes_the_command_along(box: RawSandbox) -> None:
    events = box.events("echo started; exec sleep 1003")
    next(events), next(events)
    assert "sleep 1003" in _processes(box)
    events.close()
    assert eventually(lambda: "sleep 1003" not in _processes(box))


def test_characters_stay_whole_however_they_are_cut(box: RawSandbox) -> None:
    script = r"printf 'a\303'; sleep 0.2; printf '\244\360\237'; sleep 0.2; printf '\230\200\377z\342'"
    assert box.run(script)[0] == "aä😀\ufffdz\ufffd"


def test_much_output_comes_whole(box: RawSandbox) -> None:
    size = 64 * 2**20
    total = 0
    for event in box.events(f"head -c {size} /dev/zero | tr '\\0' x", patience=100):
        if event["event"] == "stdout":
            assert event["data"].strip("x") == ""
            total += len(event["data"])
    assert total == size


def test_a_command_that_closes_its_outputs_still_ends(box: RawSandbox) -> None:
    out, _, end = box.run("echo first; exec >&- 2>&-; sleep 0.3; exit 7")
    assert (out, end["exit_code"]) == ("first\n", 7)


def test_output_held_open_by_others_is_not_awaited_for_long(box: RawSandbox) -> None:
    began = time.monotonic()
    out, _, end = box.run("echo now; sleep 60 &")
    assert (out, end["exit_code"]) == ("now\n", 0)
    assert time.monotonic() - began < 20


def test_a_signal_is_no_exit_code(box: RawSandbox) -> None:
    end = box.run("kill -TERM $$")[2]
    assert (end["exit_code"], end["signal"]) == (None, 15)


def test_many_commands_at_once(box: RawSandbox) -> None:
    with ThreadPoolExecutor(50) as pool:
        found = list(pool.map(lambda n: box.run(["echo", str(n)])[0], range(200)))
    assert found == [f"{n}\n" for n in range(200)]


# Processes


def test_processes_of_the_background(box: RawSandbox) -> None:
    started = box.call("POST", "/processes", {"cmd": ["sleep", "1004"], "tag": "t", "env": {"A": "b"}}).json
    assert started["cmd"] == ["sleep", "1004"] and started["tag"] == "t" and started["id"].startswith("p-")
    [listed] = [one for one in box.call("GET", "/processes").json if one["id"] == started["id"]]
    assert listed["running"] is True and listed["exit_code"] is None and listed["pid"] == started["pid"]
    assert abs(listed["started_at_ms"] / 1000 - time.time()) < 60
    assert box.call("DELETE", f"/processes/{started['id']}").json == {"id": started["id"], "killed": True}
    assert box.call("DELETE", f"/processes/{started['id']}").json == {"id": started["id"], "killed": False}
    [listed] = [one for one in box.call("GET", "/processes").json if one["id"] == started["id"]]
    assert listed["running"] is False


def test_older_clients_kill_by_process_id(box: RawSandbox) -> None:
    started = box.call("POST", "/processes", {"cmd": "exec sleep 1005"}).json
    assert started["cmd"] == "exec sleep 1005"
    assert box.call("DELETE", f"/processes/{started['pid']}").json["killed"] is True
    assert eventually(lambda: "sleep 1005" not in _processes(box))
    assert box.call("DELETE", "/processes/999999").json["killed"] is False


def test_a_process_that_ended_says_how(box: RawSandbox) -> None:
    started = box.call("POST", "/processes", {"cmd": "exit 5"}).json

    def listed() -> dict[str, Any]:
        return next(one for one in box.call("GET", "/processes").json if one["id"] == started["id"])

    assert eventually(lambda: not listed()["running"])
    assert listed()["exit_code"] == 5


@pytest.mark.parametrize("name", ["p-", "p-x", "x", "p--1", "p-0%2f.."])
def test_what_is_no_id_of_a_process_is_refused(box: RawSandbox, name: str) -> None:
    assert box.refused(404 if "%2f" in name else 400, "DELETE", f"/processes/{name}")


# Files


def test_files_come_back_as_they_were_written(box: RawSandbox) -> None:
    for name in ("/tmp/files/a b+c", "/tmp/files/ü%2F", "/tmp/files/😀"):
        data = os.urandom(3000)
        assert box.write(name, data).json == {"path": name, "size": 3000}
        assert box.read(name) == data
    entries = box.call("GET", "/files/list", query={"path": "/tmp/files"}).json
    assert [entry["name"] for entry in entries["entries"]] == ["a b+c", "ü%2F", "😀"]
    assert (entries["truncated"], entries["next"]) == (False, None)


def test_a_blank_is_a_plus_on_the_wire(box: RawSandbox) -> None:
    box.call("PUT", "/files/write?path=/tmp/one+two%2Bthree", b"x")
    assert box.shell("cat '/tmp/one two+three'") == "x"


def test_one_name_described(box: RawSandbox) -> None:
    box.write("/tmp/stat/file", b"12345", mode="640")
    box.shell("cd /tmp/stat; ln -sf file link; mkdir -p dir")
    found = {name: box.call("GET", "/files/stat", query={"path": f"/tmp/stat/{name}"}).json for name in _NAMES}
    for name, kind in _NAMES.items():
        assert set(found[name]) == {"name", "path", "type", "size", "mtime_ms", "mode"}
        assert (found[name]["name"], found[name]["path"], found[name]["type"]) == (name, f"/tmp/stat/{name}", kind)
        assert abs(found[name]["mtime_ms"] / 1000 - time.time()) < 100
    assert (found["file"]["size"], found["file"]["mode"]) == (5, "640")
    root = box.call("GET", "/files/stat", query={"path": "/"}).json
    assert (root["name"], root["path"], root["type"]) == ("", "/", "dir")


_NAMES = {"file": "file", "link": "symlink", "dir": "dir"}


def test_ranges_in_any_order_at_the_same_time(box: RawSandbox) -> None:
    data = os.urandom(5 * 2**20 + 17)
    ranges = [(offset, data[offset : offset + 2**20]) for offset in range(0, len(data), 2**20)]
    box.write("/tmp/big", b"old" * 4_000_000)

    def put(part: tuple[int, bytes]) -> None:
        last = {"truncate_to": len(data)} if part[0] + len(part[1]) == len(data) else {}
        box.write("/tmp/big", part[1], offset=part[0], **last)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, ranges[::-1]))
    assert box.read("/tmp/big") == data
    assert box.read("/tmp/big", offset=2**20 - 3, length=7) == data[2**20 - 3 :][:7]
    assert box.read("/tmp/big", offset=len(data) - 2, length=100) == data[-2:]
    assert box.read("/tmp/big", offset=len(data) + 5, length=100) == b""
    assert box.read("/tmp/big", offset=0, length=0) == b""


def test_a_file_is_replaced_whole_and_may_be_empty(box: RawSandbox) -> None:
    box.write("/tmp/short", b"x" * 100)
    box.write("/tmp/short", b"y")
    assert box.read("/tmp/short") == b"y"
    box.write("/tmp/short", b"")
    assert box.read("/tmp/short") == b""


def test_folders_are_made_on_the_way_unless_that_is_not_wanted(box: RawSandbox) -> None:
    box.write("/tmp/new/way/down/file", b"x")
    assert box.refused(404, "PUT", "/files/write", b"x", query={"path": "/tmp/other/way/file", "mkdir": "0"})
    assert box.call("POST", "/files/mkdir", query={"path": "/tmp/made/deep"}).json == {"created": "/tmp/made/deep"}
    assert box.call("POST", "/files/mkdir", query={"path": "/tmp/made/deep"}).status == 200


def test_files_and_folders_are_deleted(box: RawSandbox) -> None:
    box.write("/tmp/gone/a/b", b"x")
    assert "not empty" in box.refused(400, "DELETE", "/files/delete", query={"path": "/tmp/gone"})
    assert box.call("DELETE", "/files/delete", query={"path": "/tmp/gone/a/b"}).json == {"deleted": "/tmp/gone/a/b"}
    assert box.call("DELETE", "/files/delete", query={"path": "/tmp/gone", "recursive": "1"}).status == 200
    assert box.refused(404, "GET", "/files/stat", query={"path": "/tmp/gone"})
    assert box.refused(404, "DELETE", "/files/delete", query={"path": "/tmp/gone"})


def test_what_is_no_file_says_so(box: RawSandbox) -> None:
    assert box.refused(404, "GET", "/files/read", query={"path": "/tmp/missing"})
    assert box.refused(409, "GET", "/files/read", query={"path": "/tmp"})
    assert box.refused(409, "PUT", "/files/write", b"x", query={"path": "/tmp"})
    assert box.refused(400, "GET", "/files/list", query={"path": "/etc/hostname"})
    assert box.refused(404, "GET", "/files/list", query={"path": "/missing"})
    assert box.refused(400, "GET", "/files/read")
    assert box.refused(400, "GET", "/files/read", query={"path": "/tmp/a\0b"})
    assert box.refused(400, "GET", "/files/read", query={"path": "/tmp/big", "offset": "-1"})
    assert box.refused(400, "PUT", "/files/write", b"", query={"path": "/tmp/x", "mode": "rw"})
    assert box.refused(400, "GET", "/files/list", query={"path": "/tmp", "limit": "60000"})


def test_a_device_or_pipe_is_no_file(box: RawSandbox) -> None:
    box.shell("rm -f /tmp/pipe; mkfifo /tmp/pipe")
    assert box.refused(400, "GET", "/files/read", query={"path": "/tmp/pipe"})
    assert box.refused(400, "GET", "/files/read", query={"path": "/dev/zero"})


def test_long_folders_come_in_pages(box: RawSandbox) -> None:
    box.shell("mkdir -p /tmp/many; cd /tmp/many; for i in $(seq 25); do : > f$i; done")
    names, after = [], None
    while True:
        query = {"path": "/tmp/many", "limit": 10} | ({"after": after} if after else {})
        page = box.call("GET", "/files/list", query=query).json
        names += [entry["name"] for entry in page["entries"]]
        after = page["next"]
        assert page["truncated"] is (after is not None)
        if after is None:
            break
    assert names == sorted(f"f{i}" for i in range(1, 26))


def test_an_upload_that_is_cut_changes_nothing_but_its_file(box: RawSandbox) -> None:
    connection = box.connect()
    connection.putrequest("PUT", box.at("/files/write", {"path": "/tmp/cut"}))
    for name, value in {"Authorization": f"Bearer {box.server.token}", "X-Sandbox-Token": box.token}.items():
        connection.putheader(name, value)
    connection.putheader("Content-Length", "1000000")
    connection.endheaders()
    connection.send(b"x" * 1000)
    connection.close()
    assert box.shell("echo alive") == "alive\n"
    box.write("/tmp/cut", b"whole")
    assert box.read("/tmp/cut") == b"whole"


def test_large_files_need_no_memory(box: RawSandbox) -> None:
    assert box.server.process is not None
    before = _peak_bytes(box.server.process.pid)
    size, piece = 256 * 2**20, b"x" * 2**20
    connection = box.connect(100)
    connection.putrequest("PUT", box.at("/files/write", {"path": "/tmp/large"}))
    for name, value in {"Authorization": f"Bearer {box.server.token}", "X-Sandbox-Token": box.token}.items():
        connection.putheader(name, value)
    connection.putheader("Content-Length", str(size))
    connection.endheaders()
    for _ in range(size // len(piece)):
        connection.send(piece)
    answer = connection.getresponse()
    assert json.loads(answer.read()) == {"path": "/tmp/large", "size": size}
    connection.request("GET", box.at("/files/read", {"path": "/tmp/large"}), headers=box._headers({}))
    answer = connection.getresponse()
    time.sleep(0.5)  # who reads slowly makes the server wait, not collect
    total = 0
    while data := answer.read(2**20):
        total += len(data)
    connection.close()
    box.shell("rm /tmp/large")
    assert total == size
    assert _peak_bytes(box.server.process.pid) - before < 64 * 2**20


def _peak_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


# Ports

SERVER = r"""
import socketserver, sys
class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self.rfile.readline()
        if b"upgrade: echo" in head.lower():
            self.wfile.write(b"HTTP/1.1 101 Yes\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
            while data := self.request.recv(65536):
                self.wfile.write(data[::-1])
        else:
            self.wfile.write(b"HTTP/1.1 200 Yes\r\nContent-Type: text/event-stream\r\n")
            self.wfile.write(b"Connection: close\r\n\r\n")
            self.wfile.write(b"data: one\n\n")
            open("/tmp/go-on").read()
            self.wfile.write(b"data: two\n\n")
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
Server(("127.0.0.1", 8011), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def port(box: RawSandbox) -> str:
    box.write("/tmp/server.py", SERVER.encode())
    box.shell("rm -f /tmp/go-on; mkfifo /tmp/go-on")
    box.call("POST", "/processes", {"cmd": ["python3", "/tmp/server.py"]})
    assert eventually(lambda: "1F4B" in box.shell("cat /proc/net/tcp"), 20)  # 8011
    return "/proxy/8011"


def test_events_arrive_one_by_one(box: RawSandbox, port: str) -> None:
    connection = box.connect()
    connection.request("GET", box.at(f"{port}/events"), headers=box._headers({}))
    answer = connection.getresponse()
    assert answer.getheader("content-type") == "text/event-stream"
    assert answer.readline() + answer.readline() == b"data: one\n\n"
    box.shell("echo > /tmp/go-on")
    assert answer.read() == b"data: two\n\n"
    connection.close()


def test_after_an_upgrade_bytes_go_both_ways(box: RawSandbox, port: str) -> None:
    parts = urlsplit(box.server.url)
    fields = box._headers({"Host": parts.netloc, "Connection": "Upgrade", "Upgrade": "echo"})
    head = f"GET {box.at(port + '/ws')} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items()) + "\r\n"
    with socket.create_connection((parts.hostname, parts.port), timeout=20) as connection:
        connection.sendall(head.encode())
        answer = connection.makefile("rb")
        assert b" 101 " in answer.readline()
        while answer.readline() != b"\r\n":
            pass
        for word in (b"abc", b"\0\xff" * 1000):
            connection.sendall(word)
            assert answer.read(len(word)) == word[::-1]


# Refused at creation


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"labels": {"hf-sandbox-mode": "both"}}, "labels.hf-sandbox-mode"),
        ({"environment": {"SBX_IDLE_TIMEOUT": "soon"}}, "environment.SBX_IDLE_TIMEOUT"),
        ({"environment": {"SBX_PORT": "1"}}, "environment.SBX_PORT"),
        ({"environment": {"SBX_HOST_MODE": "1"}}, "environment.SBX_HOST_MODE"),
    ],
)
def test_a_sandbox_at_odds_with_itself_is_refused(server: Server, more: dict[str, Any], field: str) -> None:
    answer = Api(server).post(f"/api/jobs/{server.owner}", sandboxes.create_body("t" * 64, **more))
    assert (answer.status, field in answer.error) == (400, True), answer


def test_an_ordinary_job_with_the_label_runs_its_command(server: Server) -> None:
    job = Api(server).shell("echo ordinary", labels={"hf-sandbox": "1"})
    assert Api(server).ended(job["id"])["status"]["stage"] == "COMPLETED"
