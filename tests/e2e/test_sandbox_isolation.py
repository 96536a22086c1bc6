"""What keeps dedicated sandboxes apart from each other, from the machine and from its server; and what does not."""

import re
import socket
from collections.abc import Iterator

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
    made = sandboxes.create(server)
    yield made
    made.cancel()


@pytest.fixture(scope="module")
def other(server: Server) -> Iterator[RawSandbox]:
    made = sandboxes.create(server)
    yield made
    made.cancel()


LISTEN = (
    "import socket; s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1);"
    "s.bind(('0.0.0.0', 8765)); s.listen(); c, _ = s.accept(); c.sendall(b'%s'); c.close(); s.accept()"
)
ADDRESS = "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('192.0.2.1', 9));"
ADDRESS += "print(s.getsockname()[0])"


def test_processes_and_files_are_its_own(box: RawSandbox, other: RawSandbox) -> None:
    other.write("/tmp/mine", b"of the other", mode="666")
    other.call("POST", "/processes", {"cmd": ["sleep", "1201"]})
    assert "1201" in other.shell("ps ax")
    assert "1201" not in box.shell("ps ax")
    assert box.refused(404, "GET", "/files/read", query={"path": "/tmp/mine"})


def test_ports_are_its_own(box: RawSandbox, other: RawSandbox) -> None:
    for one, word in ((box, "box"), (other, "other")):
        one.call("POST", "/processes", {"cmd": ["python3", "-c", LISTEN % word]})

        def listening(one: RawSandbox = one) -> bool:
            return "223D" in one.shell("cat /proc/net/tcp")  # 8765

        assert eventually(listening)
    address = other.run(["python3", "-c", ADDRESS])[0].strip()
    assert re.fullmatch(r"[\d.]+", address)
    reach = f"import socket; s = socket.socket(); s.settimeout(2); s.connect(({address!r}, 8765)); print('reached')"
    out, _, end = box.run(["python3", "-c", reach])
    assert (out, end["exit_code"] == 0) == ("", False)
    here = "import socket; s = socket.create_connection(('127.0.0.1', 8765)); print(s.recv(9).decode())"
    assert box.run(["python3", "-c", here])[0] == "box\n"


def test_services_of_the_machine_are_out_of_reach_but_this_server(box: RawSandbox) -> None:
    with socket.create_server(("0.0.0.0", 0)) as service:
        port = service.getsockname()[1]
        gateway = box.shell("echo $HF_ENDPOINT").strip().removeprefix("http://").partition(":")[0]
        reach = "import socket, sys; s = socket.socket(); s.settimeout(2); s.connect((sys.argv[1], int(sys.argv[2])))"
        for address in (gateway, "127.0.0.1"):
            assert box.run(["python3", "-c", reach, address, str(port)])[2]["exit_code"] != 0
    health = "import os, urllib.request as r; print(r.urlopen(os.environ['HF_ENDPOINT'] + '/healthz').status)"
    assert box.run(["python3", "-c", health])[0] == "200\n"


def test_the_servers_secrets_are_not_there_by_any_path(box: RawSandbox) -> None:
    key = box.server.data_dir / "secret.key"
    assert key.exists()
    box.shell(f"ln -sfn {key.parent} /tmp/data; ln -sfn / /tmp/root; ln -sfn /proc/1/root /tmp/first")
    for path in (str(key), "/tmp/data/secret.key", f"/tmp/root{key}", f"/tmp/first{key}", f"/proc/1/root{key}"):
        assert box.call("GET", "/files/read", query={"path": path}).status in (400, 404), path
        assert box.run(["cat", path])[2]["exit_code"] != 0
    assert box.call("GET", "/files/read", query={"path": "../" * 50 + str(key)}).status == 404


def test_the_program_that_lets_the_server_in_cannot_be_used_from_inside(box: RawSandbox) -> None:
    script = "kill -9 1; kill -9 $(ps ax -o pid= | head -1); ls -l /proc/1/fd /proc/1/exe; cat /proc/1/mem | head -c 1"
    box.run(script)
    assert box.shell("echo alive") == "alive\n"


def test_it_is_root_inside_and_nobody_outside(box: RawSandbox) -> None:
    assert box.shell("id -u") == "0\n"
    outside = int(box.shell("cat /proc/self/uid_map").split()[1])
    assert outside >= 65_536
    assert box.run("mount -t tmpfs none /mnt")[2]["exit_code"] != 0
    assert box.run("echo 1 > /proc/sys/kernel/panic")[2]["exit_code"] != 0


def test_the_kernel_is_shared(box: RawSandbox) -> None:
    """Not a promise but the lack of one, as the documentation says."""
    with open("/proc/sys/kernel/osrelease") as file:
        assert box.shell("cat /proc/sys/kernel/osrelease") == file.read()


def test_one_that_may_reach_nothing_is_still_of_use(server: Server) -> None:
    box = sandboxes.create(server, environment={"RUNSTEAD_EGRESS": "none"})
    health = "import os, urllib.request as r; print(r.urlopen(os.environ['HF_ENDPOINT'] + '/healthz').status)"
    assert box.run(["python3", "-c", health])[0] == "200\n"
    out = "import socket; s = socket.socket(); s.settimeout(2); s.connect(('192.0.2.1', 80))"
    assert box.run(["python3", "-c", out])[2]["exit_code"] != 0
    box.call("POST", "/processes", {"cmd": ["python3", "-m", "http.server", "8001", "--bind", "127.0.0.1"]})
    assert eventually(lambda: box.call("GET", "/proxy/8001/").status == 200, 20)
    box.cancel()


@pytest.mark.parametrize("places", ["a/b", "a:99999", "10.0.0.0/33"])
def test_a_list_of_no_places_is_refused(server: Server, places: str) -> None:
    body = sandboxes.create_body("t" * 64, environment={"RUNSTEAD_EGRESS": places})
    answer = Api(server).post(f"/api/jobs/{server.owner}", body)
    assert (answer.status, "RUNSTEAD_EGRESS" in answer.error) == (400, True), answer
