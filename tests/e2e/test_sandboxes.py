"""Dedicated sandboxes through the real clients, on the command line and in Python."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import sandboxes
from calls import Api
from clients import Client, Server, eventually, make_client

SANDBOX_VERSIONS = ("2.4.0", "1.28.0")  # 1.9.0 has none


@pytest.fixture(scope="module", params=sandboxes.EXECUTORS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with sandboxes.serving(request.param, tmp_path_factory) as started:
        yield started


@pytest.fixture(params=SANDBOX_VERSIONS)
def client(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> Client:
    return make_client(request.param, server, tmp_path)


@pytest.fixture(scope="module", params=SANDBOX_VERSIONS)
def cli(request: pytest.FixtureRequest, server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Cli"]:
    client = make_client(request.param, server, tmp_path_factory.mktemp("cli"))
    said = client.hf("sandbox", "create", "--env", "A=b", "--idle-timeout", "1h")
    found = re.search(r"\b[0-9a-f]{24}\b", said.stdout + said.stderr)
    assert found, said
    yield Cli(client, found[0])
    client.hf("sandbox", "kill", found[0], "-y", check=False)


class Cli:
    """The command line and a sandbox of its own."""

    def __init__(self, client: Client, sandbox_id: str) -> None:
        self.client = client
        self.id = sandbox_id

    def exec(self, *words: str, check: bool = True) -> "tuple[int, str, str]":
        done = self.client.hf("sandbox", "exec", *words[:-1], self.id, "--", *words[-1].split(" "), check=check)
        return done.returncode, done.stdout, done.stderr


def test_exec_shows_outputs_and_has_the_exit_code(cli: Cli) -> None:
    assert cli.exec("printenv A") == (0, "b\n", "")
    assert cli.exec("-w", "/tmp", "pwd") == (0, "/tmp\n", "")
    assert cli.exec("false", check=False)[0] == 1
    status, _, said = cli.exec("no-such-program", check=False)
    assert status != 0 and "no-such-program" in said


def test_exec_within_a_time_limit(cli: Cli) -> None:
    assert cli.exec("--timeout", "1", "sleep 1000", check=False)[0] == 124


def test_files_are_copied_both_ways(cli: Cli, tmp_path: Path) -> None:
    data = bytes(range(256)) * 20_000  # large enough to go in ranges
    (tmp_path / "large").write_bytes(data)
    cli.client.hf("sandbox", "cp", str(tmp_path / "large"), f"{cli.id}:/tmp/copied/large")
    cli.client.hf("sandbox", "cp", f"{cli.id}:/tmp/copied/large", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == data
    cli.client.hf("sandbox", "cp", f"{cli.id}:/etc/passwd", str(tmp_path / "small"))
    assert b"root" in (tmp_path / "small").read_bytes()
    missing = cli.client.hf("sandbox", "cp", f"{cli.id}:/missing", str(tmp_path / "none"), check=False)
    assert missing.returncode != 0 and not (tmp_path / "none").exists()


def test_processes_are_started_listed_and_killed(cli: Cli) -> None:
    said = cli.client.hf("sandbox", "spawn", cli.id, "--", "sleep", "1000").stdout
    pid = re.findall(r"\d+", said)[-1]
    assert pid in cli.client.hf("sandbox", "process", "ls", cli.id).stdout
    cli.client.hf("sandbox", "process", "kill", cli.id, pid)
    assert eventually(lambda: "sleep 1000" not in _running(cli))


def _running(cli: Cli) -> str:
    return cli.exec("ps ax -o args")[1]


def test_it_is_found_by_its_label(cli: Cli) -> None:
    assert cli.id in [job["id"] for job in Api(cli.client.server).jobs("?label=hf-sandbox%3D1&stage=RUNNING")]


def test_kill_ends_it(client: Client) -> None:
    said = client.hf("sandbox", "create")
    found = re.search(r"\b[0-9a-f]{24}\b", said.stdout + said.stderr)
    assert found
    client.hf("sandbox", "kill", found[0])
    assert Api(client.server).ended(found[0])["status"]["stage"] == "CANCELED"
    gone = client.hf("sandbox", "exec", found[0], "--", "true", check=False)
    assert gone.returncode != 0 and "not running" in gone.stdout + gone.stderr


def test_a_sandbox_in_python(client: Client) -> None:
    found = client.python(
        """
from huggingface_hub import Sandbox
from huggingface_hub.errors import SandboxCommandError, SandboxError
found = {}
with Sandbox.create(env={"A": 1, "B": True}, secrets={"C": "d"}, idle_timeout=None) as sbx:
    found["id"] = sbx.id
    found["image"] = sbx.image
    r = sbx.run("echo $A $B $C; echo err >&2; exit 3", check=False)
    found["run"] = [r.exit_code, r.stdout, r.stderr, r.ok]
    try:
        sbx.run("exit 4")
    except SandboxCommandError as e:
        found["checked"] = True
    found["argv"] = sbx.run(["printf", "%s", "a b"]).stdout
    found["stdin"] = sbx.run("cat", stdin="typed").stdout
    lines = []
    sbx.run("echo 1; echo 2", on_stdout=lines.append)
    found["streamed"] = "".join(lines)
    found["timed_out"] = sbx.run("sleep 1000", timeout=0.5, check=False).timed_out
    try:
        sbx.run(["no-such-program"])
    except SandboxError as e:
        found["missing"] = str(e)
    sbx.files.write("/tmp/x/text", "hällo")
    found["text"] = sbx.files.read_text("/tmp/x/text")
    big = bytes(range(256)) * 40_000
    sbx.files.write("/tmp/x/big", big, mode="600")
    found["big"] = sbx.files.read("/tmp/x/big") == big
    found["stat"] = [sbx.files.stat("/tmp/x/big").size, sbx.files.stat("/tmp/x/big").mode]
    sbx.files.mkdir("/tmp/x/dir/deep")
    found["list"] = [[e.name, e.type] for e in sbx.files.list("/tmp/x")]
    found["exists"] = [sbx.files.exists("/tmp/x/big"), sbx.files.exists("/tmp/none")]
    sbx.files.delete("/tmp/x", recursive=True)
    found["deleted"] = sbx.files.exists("/tmp/x")
    p = sbx.run(["sleep", "1000"], background=True)
    found["background"] = p.pid in [q.pid for q in sbx.processes()] and p.kill() is not False
    again = Sandbox.connect(sbx.id)
    found["again"] = again.run("echo here").stdout
    again.close()
out(found)
"""
    )
    assert found.pop("id") and "no-such-program" in found.pop("missing")
    assert found == {
        "image": "python:3.12",
        "run": [3, "1 true d\n", "err\n", False],
        "checked": True,
        "argv": "a b",
        "stdin": "typed",
        "streamed": "1\n2\n",
        "timed_out": True,
        "text": "hällo",
        "big": True,
        "stat": [10_240_000, "600"],
        "list": [["big", "file"], ["dir", "dir"], ["text", "file"]],
        "exists": [True, False],
        "deleted": False,
        "background": True,
        "again": "here\n",
    }


def test_a_server_inside_is_reached_by_its_port(client: Client) -> None:
    found = client.python(
        """
import json, time, urllib.request
from huggingface_hub import Sandbox
code = '''
import http.server
class H(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        seen = {k.lower(): v for k, v in self.headers.items()}
        tokens = sorted(set(seen) & {"authorization", "x-sandbox-token"})
        text = f"{self.path} {body.decode()} {tokens}".encode()
        self.send_response(201)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
http.server.HTTPServer(("127.0.0.1", 8123), H).serve_forever()
'''
with Sandbox.create() as sbx:
    url = sbx.proxy_url_for(8123, "/a%20b/c?d=e", scheme="http://")
    def post(url, headers):
        try:
            r = urllib.request.urlopen(urllib.request.Request(url, b"body", headers))
        except urllib.error.HTTPError as r:
            return [r.code, r.read().decode()]
        return [r.status, r.read().decode()]
    found = {"before": post(url, sbx.proxy_headers)}
    sbx.files.write("/tmp/s.py", code)
    sbx.run(["python3", "/tmp/s.py"], background=True)
    for _ in range(100):
        found["after"] = post(url, sbx.proxy_headers)
        if found["after"][0] == 201:
            break
        time.sleep(0.1)
    found["stranger"] = post(url, {**sbx.proxy_headers, "X-Sandbox-Token": "wrong"})
    found["no port"] = post(sbx.proxy_url_for(70000, scheme="http://"), sbx.proxy_headers)
out(found)
"""
    )
    assert found["before"][0] == 502 and "error" in found["before"][1]
    assert found["after"] == [201, "/a%20b/c?d=e body []"]
    assert found["stranger"][0] == 403
    assert found["no port"][0] == 404
