"""Pooled sandboxes: many in one host job, on the wire and through the real clients."""

import re
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import sandboxes
from calls import Api
from clients import Client, Server, eventually, make_client
from faults import QuickServer
from sandboxes import RawSandbox

DOMAIN = "sandboxes.localhost"
# As on one machine: no name service, an authority of the server's own, the server itself as the way to its names.
SETTINGS = {"RUNSTEAD_PROXY_TLS": "own", "RUNSTEAD_PROXY_DOMAIN": DOMAIN}


@pytest.fixture(scope="module", params=sandboxes.EXECUTORS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with sandboxes.serving(request.param, tmp_path_factory, SETTINGS) as started:
        yield started


@pytest.fixture(scope="module")
def host(server: Server) -> Iterator[RawSandbox]:
    made = sandboxes.create(server, "pool", environment={"OF_HOST": "seen"}, secrets={"HOST_SECRET": "s3cret"})
    yield made
    made.cancel()


@pytest.fixture
def box(host: RawSandbox) -> Iterator[RawSandbox]:
    made = sandboxes.pooled(host)
    yield made
    host.call("DELETE", f"~{made.prefix}")


@pytest.fixture
def other(host: RawSandbox) -> Iterator[RawSandbox]:
    made = sandboxes.pooled(host)
    yield made
    host.call("DELETE", f"~{made.prefix}")


class PoolClient(Client):
    """A client that trusts the server's authority, and finds its names by way of it."""

    @property
    def environment(self) -> dict[str, str]:
        authority = self.server.run("tls", "ca").stdout.strip()
        return super().environment | {
            "HF_ENDPOINT": f"https://localhost:{self.server.port}",
            "SSL_CERT_FILE": authority,
            "HTTPS_PROXY": self.server.url,
            "NO_PROXY": "localhost,127.0.0.1",
        }


@pytest.fixture(params=("2.4.0", "1.28.0"))
def client(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> Client:
    made = make_client(request.param, server, tmp_path)
    return PoolClient(made.version, made.server, made.home)


# On the wire


def test_a_host_says_what_it_is(host: RawSandbox) -> None:
    found = host.call("GET", "~/health").json
    assert (found["mode"], found["protocol"]) == ("host", 3)
    assert host.refused(404, "POST", "/exec", {"cmd": "true"})
    assert host.refused(404, "GET", "/files/stat", query={"path": "/"})


def test_sandboxes_are_made_listed_and_removed(host: RawSandbox) -> None:
    answer = host.call("POST", "~/v1/sandboxes", {"count": 3, "env": {"A": "b"}}).json
    assert answer["rejected"] == 0
    made = answer["sandboxes"]
    assert all(set(one) == {"id", "token", "uid", "home", "confinement"} for one in made)
    assert all(re.fullmatch("[0-9a-f]{16}", one["id"]) and re.fullmatch("[0-9a-f]{64}", one["token"]) for one in made)
    assert len({one["uid"] for one in made} | {one["token"] for one in made}) == 6
    listed = {one["id"]: one for one in host.call("GET", "~/v1/sandboxes").json}
    for one in made:
        assert set(listed[one["id"]]) == {"id", "uid", "home", "created_at_ms", "confinement"}
        token = host.call("GET", f"~/v1/sandboxes/{one['id']}/token").json
        assert token == {"id": one["id"], "token": one["token"]}
        gone = host.call("DELETE", f"~/v1/sandboxes/{one['id']}", headers={"X-Sandbox-Token": one["token"]})
        assert gone.json == {"id": one["id"], "deleted": True}
        assert host.refused(404, "DELETE", f"~/v1/sandboxes/{one['id']}")
        assert host.refused(404, "GET", f"~/v1/sandboxes/{one['id']}/processes")
    assert not {one["id"] for one in made} & {one["id"] for one in host.call("GET", "~/v1/sandboxes").json}


def test_a_full_host_rejects_and_is_no_error(server: Server) -> None:
    host = sandboxes.create(server, "pool", capacity=2)
    answer = host.call("POST", "~/v1/sandboxes", {"count": 3}).json
    assert (len(answer["sandboxes"]), answer["rejected"]) == (2, 1)
    assert host.call("POST", "~/v1/sandboxes", {"count": 1}).json == {"sandboxes": [], "rejected": 1}
    host.call("DELETE", f"~/v1/sandboxes/{answer['sandboxes'][0]['id']}")
    assert host.call("POST", "~/v1/sandboxes", {"count": 1}).json["rejected"] == 0
    assert host.call("DELETE", "~/v1/sandboxes").json == {"deleted": 2}
    assert host.call("GET", "~/v1/sandboxes").json == []
    host.cancel()


def test_a_token_opens_its_sandbox_and_no_other(host: RawSandbox, box: RawSandbox, other: RawSandbox) -> None:
    mine = {"X-Sandbox-Token": box.token}
    assert box.call("GET", "/processes").status == 200
    assert other.refused(403, "GET", "/processes", headers=mine)
    assert other.refused(403, "POST", "/exec", {"cmd": "true"}, headers=mine)
    assert host.refused(403, "DELETE", f"~{other.prefix}", headers=mine)
    for method, path in (
        ("GET", "~/v1/sandboxes"),
        ("POST", "~/v1/sandboxes"),
        ("DELETE", "~/v1/sandboxes"),
        ("GET", f"~{box.prefix}/token"),
    ):
        assert host.refused(403, method, path, {"count": 1} if method == "POST" else None, headers=mine)


def test_older_clients_use_the_hosts_token_everywhere(host: RawSandbox, box: RawSandbox) -> None:
    answer = box.call("GET", "/processes", headers={"X-Sandbox-Token": host.token})
    assert answer.status == 200


def test_what_a_pooled_sandbox_looks_like_inside(host: RawSandbox) -> None:
    box = sandboxes.pooled(host, env={"MINE": 1, "HOST_SECRET": "own"})
    sandbox_id = box.prefix.rpartition("/")[2]
    found = dict(line.split("=", 1) for line in box.shell("env").splitlines() if "=" in line)
    home = found["HOME"]
    assert found["MINE"] == "1" and found["HOST_SECRET"] == "own"
    assert found["SBX_SANDBOX_ID"] == sandbox_id and found["SBX_PROXY_DIR"] == f"{home}/.sbx/proxy"
    assert found["USER"] == found["LOGNAME"] == f"sbx-{sandbox_id}"
    assert found["PATH"].split(":")[0] == f"{home}/.local/bin"
    for name in ("OF_HOST", "JOB_ID", "HF_TOKEN", "SBX_TOKEN", "SBX_PORT", "SBX_CAPACITY", "HF_ENDPOINT"):
        assert name not in found
    assert box.shell("pwd").strip() == home
    uid, gid = box.shell("id -u; id -g").split()
    assert uid == gid and int(uid) >= 20_000
    assert box.shell("echo x > file; mkdir -p $TMPDIR $SBX_PROXY_DIR; echo $A", env={"A": "b"}) == "b\n"
    assert box.read("/file") == b"x\n"
    host.call("DELETE", f"~{box.prefix}")


def test_commands_processes_and_files(box: RawSandbox) -> None:
    out, err, end = box.run("echo out; echo err >&2; exit 3")
    assert (out, err, end["exit_code"]) == ("out\n", "err\n", 3)
    started = box.call("POST", "/processes", {"cmd": ["sleep", "1100"]}).json
    assert box.call("DELETE", f"/processes/{started['id']}").json["killed"] is True
    box.write("/deep/down/a b", b"data", mode="600")
    assert box.shell("cat 'deep/down/a b'; stat -c '%a %u' 'deep/down/a b'; id -u").split() == [
        *("data600", box.shell("id -u").strip()),
        box.shell("id -u").strip(),
    ]
    entry = box.call("GET", "/files/stat", query={"path": "deep/down/a b"}).json
    assert (entry["path"], entry["size"], entry["mode"]) == ("/deep/down/a b", 4, "600")
    listed = box.call("GET", "/files/list", query={"path": "/deep"}).json["entries"]
    assert [(one["name"], one["type"], one["path"]) for one in listed] == [("down", "dir", "/deep/down")]
    box.call("DELETE", "/files/delete", query={"path": "/deep", "recursive": "1"})
    assert box.refused(404, "GET", "/files/stat", query={"path": "/deep"})
    _, _, end = box.run("sleep 1101 & setsid sleep 1102 & sleep 1103", timeout=0.3)
    assert end["timed_out"] is True


def test_no_path_leads_out_of_the_home(box: RawSandbox) -> None:
    box.shell("ln -s /etc etc; ln -s /etc/passwd passwd; mkdir -p sub; ln -s ../.. sub/up; echo mine > hostname")
    assert box.read("/../../../hostname") == b"mine\n"
    assert box.read("//./sub/../hostname") == b"mine\n"
    assert box.refused(400, "GET", "/files/read", query={"path": "/passwd"})
    assert box.refused(400, "GET", "/files/read", query={"path": "/etc/passwd"})
    assert box.refused(400, "GET", "/files/read", query={"path": "/sub/up/x"})
    assert box.refused(400, "PUT", "/files/write", b"x", query={"path": "/etc/x"})
    assert box.refused(400, "PUT", "/files/write", b"x", query={"path": "/passwd"})
    assert box.refused(400, "POST", "/files/mkdir", query={"path": "/etc/new"})
    assert box.refused(400, "DELETE", "/files/delete", query={"path": "/etc/passwd"})
    assert box.call("GET", "/files/stat", query={"path": "/passwd"}).json["type"] == "symlink"
    assert box.call("DELETE", "/files/delete", query={"path": "/passwd"}).status == 200
    assert "root" in box.shell("cat /etc/passwd")


def test_a_server_on_a_unix_socket_is_reached_by_its_port(box: RawSandbox) -> None:
    assert box.refused(502, "GET", "/proxy/8000/x")
    code = """
import http.server, os, socketserver
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.path.encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def address_string(self):
        return "x"
os.makedirs(os.environ["SBX_PROXY_DIR"], exist_ok=True)
socketserver.UnixStreamServer(os.environ["SBX_PROXY_DIR"] + "/8000.sock", Handler).serve_forever()
"""
    box.write("/server.py", code.encode())
    box.call("POST", "/processes", {"cmd": ["python3", "server.py"]})
    assert eventually(lambda: box.call("GET", "/proxy/8000/a%20b?c").status == 200, 20)
    assert box.call("GET", "/proxy/8000/a%20b?c").body == b"/a%20b?c"
    assert box.refused(403, "GET", "/proxy/8000/", headers={"X-Sandbox-Token": "wrong"})


# Neighbours


def test_a_neighbour_is_neither_seen_nor_signalled_nor_read(box: RawSandbox, other: RawSandbox) -> None:
    other.write("/secret", b"of the other", mode="644")
    started = other.call("POST", "/processes", {"cmd": ["sleep", "1104"], "env": {"HIDDEN": "of-the-other"}}).json
    home = other.shell("pwd").strip()
    seen = box.shell(
        f"ps ax; cat {home}/secret; ls -la {home}; ls {home}/..; cat /proc/*/environ 2>/dev/null | tr '\\0' ' '; "
        "for p in /proc/[0-9]*; do cat $p/cmdline; echo; done 2>/dev/null | tr '\\0' ' '; true"
    )
    assert "1104" not in seen and "of the other" not in seen and "of-the-other" not in seen
    other_id = other.prefix.rpartition("/")[2]
    assert other_id not in seen.replace(home, "")
    # Who kills all there is kills what attends to it, too.
    box.call("POST", "/exec", {"cmd": "kill -9 -1; for i in $(seq 2 500); do kill -9 $i; done", "timeout": 5})
    assert eventually(lambda: box.call("POST", "/exec", {"cmd": "true"}).status == 200)
    [process] = [one for one in other.call("GET", "/processes").json if one["id"] == started["id"]]
    assert process["running"] is True


def test_a_pooled_sandbox_writes_nowhere_but_at_home(box: RawSandbox) -> None:
    script = "for d in / /etc /usr /var /opt /root /srv; do touch $d/x 2>/dev/null && echo wrote $d; done; true"
    assert box.shell(script) == ""


def test_a_greedy_one_meets_its_own_limits(host: RawSandbox, other: RawSandbox) -> None:
    greedy = sandboxes.pooled(host, max_procs=20, max_mem_mb=64)
    greedy.run("for i in $(seq 100); do sleep 1105 & done 2>/dev/null; echo done", timeout=20)
    assert other.shell("echo fine") == "fine\n"
    assert int(greedy.run("ls /proc | grep -c '^[0-9]'", timeout=5)[0] or 0) <= 25
    _, _, end = greedy.run(["python3", "-c", "x = bytearray(500 << 20); print(len(x))"], timeout=20)
    assert end["exit_code"] != 0
    assert other.shell("echo fine") == "fine\n"
    host.call("DELETE", f"~{greedy.prefix}")


def reached(box: RawSandbox) -> list[bool]:
    """Which of two places that nobody answers from a sandbox may send to."""
    code = "import socket, sys; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', (sys.argv[1], 9))"
    ends = [box.run(["python3", "-c", code, address])[1:] for address in ("192.0.2.1", "192.0.2.2")]
    assert all("not permitted" in said or not ended["exit_code"] for said, ended in ends), ends
    return [not ended["exit_code"] for _, ended in ends]


def test_what_one_of_them_may_reach_is_kept(host: RawSandbox, other: RawSandbox) -> None:
    listed = sandboxes.pooled(host, env={"RUNSTEAD_EGRESS": "192.0.2.1:9, localhost:9"})
    none = sandboxes.pooled(host, env={"RUNSTEAD_EGRESS": "none"})
    assert (reached(listed), reached(none), reached(other)) == ([True, False], [False, False], [True, True])
    assert listed.shell("tail -1 /etc/hosts") == "127.0.0.1 localhost\n" != other.shell("tail -1 /etc/hosts")
    assert listed.run("echo >> /etc/hosts")[2]["exit_code"] != 0
    for one in (listed, none):
        host.call("DELETE", f"~{one.prefix}")
    after = [sandboxes.pooled(host) for _ in range(3)]  # none gets the rules of another
    assert [reached(one) for one in after] == [[True, True]] * 3
    for one in after:
        host.call("DELETE", f"~{one.prefix}")


def test_a_list_that_cannot_be_kept_is_refused(host: RawSandbox) -> None:
    before = len(host.call("GET", "~/v1/sandboxes").json)
    for text, status in (("a/b", 400), ("no-such-name.invalid:443", 409)):
        answer = host.call("POST", "~/v1/sandboxes", {"count": 1, "env": {"RUNSTEAD_EGRESS": text}})
        assert answer.status == status, answer
        assert ("RUNSTEAD_EGRESS" if status == 400 else "no-such-name.invalid") in answer.json["error"]
    assert len(host.call("GET", "~/v1/sandboxes").json) == before


def test_the_list_of_a_host_holds_for_its_sandboxes(server: Server) -> None:
    host = sandboxes.create(server, "pool", environment={"RUNSTEAD_EGRESS": "192.0.2.1:9"})
    assert reached(sandboxes.pooled(host)) == [True, False]
    assert reached(sandboxes.pooled(host, env={"RUNSTEAD_EGRESS": "none"})) == [False, False]
    answer = host.call("POST", "~/v1/sandboxes", {"count": 1, "env": {"RUNSTEAD_EGRESS": "192.0.2.2"}})
    assert (answer.status, "192.0.2.2" in answer.json["error"]) == (400, True), answer
    host.cancel()


def test_a_removed_one_leaves_nothing(host: RawSandbox, other: RawSandbox) -> None:
    box = sandboxes.pooled(host)
    box.write("/kept", b"x")
    home = box.shell("pwd").strip()
    box.call("POST", "/processes", {"cmd": "setsid sleep 1106 & sleep 1107"})
    assert host.call("DELETE", f"~{box.prefix}").status == 200
    fresh = sandboxes.pooled(host)
    assert fresh.shell(f"ls -d {home} 2>/dev/null; ls -a; true").split() != [home]
    mine = (b"sleep\x001106\0", b"sleep\x001107\0")
    left = [path for path in Path("/proc").glob("[0-9]*/cmdline") if _read(path) in mine]
    assert left == []
    host.call("DELETE", f"~{fresh.prefix}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


# Time


def test_idle_sandboxes_are_removed_and_then_their_host_completes(server: Server) -> None:
    host = sandboxes.create(server, "pool", idle=2)
    idle, used = sandboxes.pooled(host, idle_timeout_secs=1), sandboxes.pooled(host, idle_timeout_secs=1)
    started = used.call("POST", "/processes", {"cmd": ["sleep", "1108"]}).json
    path = idle.prefix.rpartition("/")[2]
    assert eventually(lambda: path not in [one["id"] for one in host.call("GET", "~/v1/sandboxes").json], 30)
    assert idle.call("GET", "/processes").status == 404
    assert used.call("GET", "/processes").status == 200
    assert Api(server).stage(host.id) == "RUNNING"
    used.call("DELETE", f"/processes/{started['id']}")
    assert Api(server).ended(host.id, 60)["status"]["stage"] == "COMPLETED"


def test_pooled_sandboxes_outlive_the_server(tmp_path: Path) -> None:
    server = QuickServer(tmp_path / "data", ("--executor", "process")).start()
    try:
        host = sandboxes.create(server, "pool")
        box, gone = sandboxes.pooled(host, env={"A": "kept"}), sandboxes.pooled(host)
        box.write("/file", b"kept")
        started = box.call("POST", "/processes", {"cmd": ["sleep", "1109"]}).json
        host.call("DELETE", f"~{gone.prefix}")
        server.kill()
        server.start()
        assert eventually(lambda: host.call("GET", "~/health").status == 200)
        assert [one["id"] for one in host.call("GET", "~/v1/sandboxes").json] == [box.prefix.rpartition("/")[2]]
        assert (box.read("/file"), box.shell("echo $A")) == (b"kept", "kept\n")
        assert [one["pid"] for one in box.call("GET", "/processes").json if one["running"]] == [started["pid"]]
        assert gone.refused(404, "GET", "/processes")
    finally:
        server.stop()


def test_many_at_once(server: Server) -> None:
    host = sandboxes.create(server, "pool", capacity=100)

    def life(number: int) -> str:
        box = sandboxes.pooled(host)
        text = box.run(["echo", str(number)])[0]
        assert host.call("DELETE", f"~{box.prefix}", timeout=60).status == 200
        return text

    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(life, range(100))) == [f"{number}\n" for number in range(100)]
    assert host.call("GET", "~/v1/sandboxes").json == []
    host.cancel()


# Refused at creation


def test_a_host_that_contradicts_itself_is_refused(server: Server) -> None:
    body = sandboxes.create_body(secrets.token_hex(32), "pool")
    body["labels"]["hf-sandbox-mode"] = "dedicated"
    answer = Api(server).post(f"/api/jobs/{server.owner}", body)
    assert (answer.status, "SBX_HOST_MODE" in answer.error) == (400, True)


# Real clients


def test_the_command_line_of_pools(client: Client) -> None:
    made = client.hf("sandbox", "pool", "create", "--idle-timeout", "1h", timeout=120)
    found = re.search(r"pool-[0-9a-f]{12}", made.stdout + made.stderr)
    assert found, made
    pool = found[0]
    try:
        assert pool in client.hf("sandbox", "pool", "ls").stdout
        said = client.hf("sandbox", "create", "--pool", pool, "--env", "A=b", timeout=120)
        box = re.search(r"[0-9a-f]{24}\.[0-9a-f]{16}", said.stdout + said.stderr)
        assert box, said
        second = client.hf("sandbox", "create", "--pool", pool, timeout=120)
        other = re.search(r"[0-9a-f]{24}\.[0-9a-f]{16}", second.stdout + second.stderr)
        assert other and other[0] != box[0] and other[0][:24] == box[0][:24]
        assert client.hf("sandbox", "exec", box[0], "--", "printenv", "A").stdout == "b\n"
        local = client.home / "file"
        local.parent.mkdir(parents=True, exist_ok=True)
        local.write_bytes(b"copied" * 1_000_000)
        client.hf("sandbox", "cp", str(local), f"{box[0]}:/file")
        client.hf("sandbox", "cp", f"{box[0]}:/file", f"{local}.back")
        assert Path(f"{local}.back").read_bytes() == local.read_bytes()
        client.hf("sandbox", "spawn", box[0], "--", "sleep", "1110")
        assert "sleep" in client.hf("sandbox", "process", "ls", box[0]).stdout
        client.hf("sandbox", "kill", box[0])
        assert client.hf("sandbox", "exec", box[0], "--", "true", check=False).returncode != 0
        assert client.hf("sandbox", "exec", other[0], "--", "echo", "fine").stdout == "fine\n"
    finally:
        client.hf("sandbox", "pool", "delete", pool, "-y")
    running = f"?label=hf-sandbox-pool%3D{pool}&stage=RUNNING"
    assert eventually(lambda: Api(client.server).jobs(running) == [])


def test_a_pool_in_python_grows_is_adopted_and_closed(client: Client) -> None:
    name = f"pool-{secrets.token_hex(6)}"
    first = client.python(
        f"""
from huggingface_hub import SandboxPool
pool = SandboxPool(sandboxes_per_host=2, name={name!r}, idle_timeout="1h")
boxes = [pool.create(env={{"N": n}}) for n in range(3)]
out([[box.id, box.run("echo $N").stdout, box.host_id] for box in boxes])
""",
        timeout=120,
    )
    assert [text for _, text, _ in first] == ["0\n", "1\n", "2\n"]
    assert len({host for _, _, host in first}) == 2
    hosts = {host for _, _, host in first}
    second = client.python(
        f"""
import shutil
from huggingface_hub import Sandbox, SandboxPool, constants
shutil.rmtree(constants.HF_HOME + "/sandbox", ignore_errors=True)
again = Sandbox.connect({first[0][0]!r})
found = [again.run("echo $N").stdout]
again.kill()
pool = SandboxPool.connect({name!r})
box = pool.create()
found.append(box.host_id)
box.files.write("x", "y")
found.append(box.files.read_text("/x"))
out(found)
""",
        timeout=120,
    )
    assert second[0] == "0\n" and second[1] in hosts and second[2] == "y"
    for host in hosts:
        Api(client.server).cancel(host)


def test_hosts_booted_by_a_pool_end_with_it(client: Client) -> None:
    host = client.python(
        """
from huggingface_hub import SandboxPool
with SandboxPool() as pool:
    with pool.create() as box:
        assert box.run("echo x").stdout == "x\\n"
        host = box.host_id
out(host)
""",
        timeout=120,
    )
    assert Api(client.server).ended(host)["status"]["stage"] == "CANCELED"
