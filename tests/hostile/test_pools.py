"""Pooled sandboxes that are after their neighbours: to find, stop, read, starve and be them."""

import json
import socket
import time
from collections.abc import Iterator

import pytest

import sandboxes
from clients import Server
from sandboxes import RawSandbox

MARK = "7f3c-of-the-neighbour"

# Whatever it gets at is printed; nothing should be.
HUNT = """
import ctypes, glob, os, pathlib, signal, socket, sys
mark, home, me = sys.argv[1:4]
libc = ctypes.CDLL(None, use_errno=True)
def attempt(what, work):
    try:
        found = work()
    except (OSError, ValueError):
        return
    if found:
        print(what, found)
mine = {os.getpid(), os.getppid(), 1}
for pid in range(1, 70000):
    if pid not in mine:
        attempt("signalled", lambda: os.kill(pid, 0) is None and pid)
for path in set(glob.glob("/proc/[0-9]*")) - {f"/proc/{os.getpid()}"}:
    for name in ("environ", "cmdline", "mem", "maps"):
        attempt("read", lambda: mark.encode() in pathlib.Path(path, name).open("rb").read(1 << 16) and path)
attempt("listed", lambda: [name for name in os.listdir(os.path.dirname(me)) if name != os.path.basename(me)])
attempt("home", lambda: os.listdir(home))
attempt("secret", lambda: open(home + "/secret").read())
attempt("written", lambda: open(home + "/planted", "w"))
os.symlink(home + "/secret", "way"); attempt("link", lambda: open("way").read())
attempt("hard link", lambda: os.link(home + "/secret", "hard") is None)
attempt("renamed", lambda: os.rename(home, me + "/taken") is None)
for fd in range(3, 64):
    attempt("descriptor", lambda: os.listdir(f"/proc/self/fd/{fd}/{home}"))
for kind in ("mnt", "net", "pid", "ipc", "user"):
    attempt("namespace", lambda: libc.setns(os.open(f"/proc/1/ns/{kind}", os.O_RDONLY), 0) == 0 and kind)
attempt("mounted", lambda: libc.mount(b"tmpfs", b"/tmp", b"tmpfs", 0, None) == 0)
attempt("root", lambda: os.setuid(0) is None)
attempt("device", lambda: os.mknod("disk", 0o60600, os.makedev(254, 0)) is None)
for name in ("tasks", "cgroup.procs"):
    for path in glob.glob(f"/sys/fs/cgroup/**/{name}", recursive=True):
        attempt("control group", lambda: open(path, "w"))
for path in (home + "/door", "/tmp/door"):
    attempt("unix socket", lambda: socket.socket(socket.AF_UNIX).connect(path) is None)
attempt("named socket", lambda: socket.socket(socket.AF_UNIX).connect("\\0" + mark) is None)
print("done")
"""

# What a neighbour has running, to be hunted: a file, a process with a mark, a door on every kind of socket.
TARGET = """
import os, socket, sys, time
open("secret", "w").write(sys.argv[1])
doors = [socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)]
for door, place in zip(doors, (os.path.expanduser("~/door"), "/tmp/door", "\\0" + sys.argv[1])):
    door.bind(place)
    door.listen()
open_door = socket.create_server(("0.0.0.0", 7411))
open("ready", "w").close()
time.sleep(600)
"""

BOMB = "import os\nwhile True:\n try: os.fork()\n except OSError: pass"
HOG = "import os\nfor _ in range(3): os.fork()\nx = []\nwhile True: x.append(b'x' * (4 << 20))"
SPIN = "import os\nfor _ in range(6): os.fork()\nwhile True: pass"


@pytest.fixture(scope="module", params=sandboxes.EXECUTORS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with sandboxes.serving(request.param, tmp_path_factory) as started:
        yield started


@pytest.fixture(scope="module")
def host(server: Server) -> Iterator[RawSandbox]:
    made = sandboxes.create(server, "pool")
    yield made
    made.cancel()


@pytest.fixture
def hunter(host: RawSandbox) -> Iterator[RawSandbox]:
    made = sandboxes.pooled(host)
    yield made
    host.call("DELETE", f"~{made.prefix}")


@pytest.fixture
def neighbour(host: RawSandbox) -> Iterator[RawSandbox]:
    made = sandboxes.pooled(host, env={"OF_MINE": MARK})
    made.call("POST", "/processes", {"cmd": ["python3", "-c", TARGET, MARK]})
    until = time.monotonic() + 60
    while made.call("GET", "/files/stat", query={"path": "ready"}).status != 200:
        assert time.monotonic() < until
    yield made
    host.call("DELETE", f"~{made.prefix}")


def home_of(host: RawSandbox, box: RawSandbox) -> str:
    wanted = box.prefix.rpartition("/")[2]
    return next(one["home"] for one in host.call("GET", "~/v1/sandboxes").json if one["id"] == wanted)


def test_a_neighbour_is_not_found_by_any_way(host: RawSandbox, hunter: RawSandbox, neighbour: RawSandbox) -> None:
    places = home_of(host, neighbour), home_of(host, hunter)
    out, err, end = hunter.run(["python3", "-c", HUNT, MARK, *places], patience=120)
    assert (out, end["exit_code"]) == ("done\n", 0), err
    assert neighbour.shell("cat secret; echo; ls").split() == [MARK, "door", "ready", "secret"]
    [running] = neighbour.call("GET", "/processes").json
    assert running["running"]
    # The hunt itself is no dud: at home it finds what there is.
    found = neighbour.run(["python3", "-c", HUNT, MARK, places[0], places[0]], patience=120)[0]
    assert {"signalled", "read", "home", "secret", "written", "link", "unix", "named"} <= {
        line.split()[0] for line in found.splitlines()
    }


def test_a_neighbours_ports_are_not_reached(hunter: RawSandbox, neighbour: RawSandbox) -> None:
    own = neighbour.shell("cat /proc/net/fib_trie | grep -B1 'host LOCAL' | grep -o '[0-9.]*$' | sort -u").split()
    knock = (
        "import socket, sys\n"
        "for address in sys.argv[1:]:\n"
        " try: socket.create_connection((address, 7411), 2); print(address)\n"
        " except OSError: pass\n"
    )
    there = [one for one in own if not one.startswith("127.")]
    assert there
    assert neighbour.run(["python3", "-c", knock, *there])[0].split() == there
    assert hunter.run(["python3", "-c", knock, *there, "127.0.0.1", "0.0.0.0", "localhost"])[0] == ""


def test_nobody_is_another_by_his_own_token(host: RawSandbox, hunter: RawSandbox, neighbour: RawSandbox) -> None:
    mine = {"X-Sandbox-Token": hunter.token}
    for method, path, body in (
        ("POST", "/exec", {"cmd": "id"}),
        ("GET", "/processes", None),
        ("GET", "/files/read", None),
        ("PUT", "/files/write", b"x"),
    ):
        answer = neighbour.call(method, path, body, query={"path": "secret"}, headers=mine)
        assert answer.status in (401, 403, 404), answer
    assert host.call("DELETE", f"~{neighbour.prefix}", headers=mine).status in (401, 403, 404)
    assert host.call("GET", "~/v1/sandboxes", headers=mine).status in (401, 403)
    assert host.call("GET", f"~{neighbour.prefix}/token", headers=mine).status in (401, 403, 404)
    assert host.call("POST", "~/v1/sandboxes", {"count": 1}, headers=mine).status in (401, 403)
    assert neighbour.shell("cat secret") == MARK


@pytest.mark.parametrize("greed", [BOMB, HOG, SPIN], ids=["processes", "memory", "processors"])
def test_a_neighbour_is_served_beside_a_greedy_one(host: RawSandbox, neighbour: RawSandbox, greed: str) -> None:
    greedy = sandboxes.pooled(host)
    connection = greedy.connect(60)
    body = json.dumps({"cmd": ["python3", "-c", greed], "timeout": 50}).encode()
    connection.request("POST", greedy.at("/exec"), body, greedy._headers({}))
    assert connection.getresponse().readline().startswith(b'{"event":"start"')
    for _ in range(5):
        assert neighbour.shell("echo served", patience=30) == "served\n"
    assert host.call("DELETE", f"~{greedy.prefix}", timeout=60).status == 200
    if connection.sock is not None:
        connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()
    assert neighbour.shell("cat secret") == MARK
    assert sandboxes.pooled(host).shell("echo room") == "room\n"
