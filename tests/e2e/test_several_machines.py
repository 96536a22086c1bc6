"""A server for several machines: a public name, a wildcard record, and a certificate of somebody else's authority.

The clients run on machines of their own (`machines.py`): they find the server by a name service, and trust that
authority and nothing else.
"""

import re
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import machines
from authorities import Authority, Pair
from clients import Client, Server, make_client
from machines import Machine, Network

NAME = "runstead.example.com"
DOMAIN = "jobs.example.com"
NAMES = (NAME, f"*.{DOMAIN}")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with machines.network(tmp_path_factory.mktemp("machines")) as made:
        yield made


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def clients(network: Network) -> tuple[Machine, Machine]:
    return network.machine("laptop"), network.machine("trainer")


@dataclass
class RemoteServer(Server):
    """A server on a machine of its own, at the port of https."""

    port: int = 443


@pytest.fixture(scope="module")
def pair(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("live")
    made = Pair(folder / "fullchain.pem", folder / "privkey.pem")
    made.put(authority.issue(*NAMES))
    return made


@pytest.fixture(scope="module")
def server(
    network: Network, clients: tuple[Machine, Machine], pair: Pair, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    machine = network.machine("server")
    network.serve_names({NAME: machine, f"*.{DOMAIN}": machine})
    settings = {
        "RUNSTEAD_SERVER_HOST": machine.address,
        "RUNSTEAD_SERVER_PUBLIC_URL": f"https://{NAME}",
        "RUNSTEAD_PROXY_DOMAIN": DOMAIN,
        "RUNSTEAD_PROXY_TLS": "files",
        "RUNSTEAD_PROXY_CERTIFICATE": str(pair.certificate),
        "RUNSTEAD_PROXY_KEY": str(pair.key),
    }
    program = (*machine.inside, sys.executable, "-m", "runstead.cli")
    data_dir = tmp_path_factory.mktemp("server") / "data"
    started = RemoteServer(data_dir, ("--stop-jobs-at-exit",), settings, program).start()
    yield started
    started.stop()


@dataclass
class RemoteClient(Client):
    """A client on a machine of its own that trusts one authority."""

    machine: Machine | None = None
    trusts: Path = Path()

    @property
    def bin(self) -> Path:
        """Where programs are that go to the machine first."""
        assert self.machine is not None
        folder = self.machine.folder / f"bin-{self.version}"
        if not folder.exists():
            folder.mkdir()
            for name in ("hf", "python"):
                words = " ".join((*self.machine.inside, str(super().bin / name)))
                (folder / name).write_text(f'#!/bin/sh\nexec {words} "$@"\n')
                (folder / name).chmod(0o755)
        return folder

    @property
    def environment(self) -> dict[str, str]:
        return machines.without_proxies(super().environment) | {"SSL_CERT_FILE": str(self.trusts)}


@pytest.fixture(params=("2.4.0", "1.28.0"))
def hub(
    request: pytest.FixtureRequest,
    server: Server,
    authority: Authority,
    clients: tuple[Machine, Machine],
    tmp_path: Path,
) -> tuple[Client, Client]:
    """The same person's client on two machines."""
    made = make_client(request.param, server, tmp_path)
    laptop, trainer = (
        RemoteClient(made.version, server, tmp_path / one.name, machine=one, trusts=authority.root) for one in clients
    )
    return laptop, trainer


# A program in a pooled sandbox that serves a port, and one on the machine of a client that asks it.
SERVES = """
import http.server, os, socketserver
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.path.encode())
    def address_string(self):
        return "x"
os.makedirs(os.environ["SBX_PROXY_DIR"], exist_ok=True)
with socketserver.UnixStreamServer(os.environ["SBX_PROXY_DIR"] + "/8000.sock", Handler) as server:
    print("serving", flush=True)
    server.serve_forever()
"""
ASKS = """
import time, urllib.error, urllib.request
def ask(url, headers):
    for _ in range(600):
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            if error.code != 502:  # it does not listen yet
                raise
        time.sleep(0.05)
"""


def test_pools_from_several_machines(hub: tuple[Client, Client]) -> None:
    laptop, trainer = hub
    pool = f"pool-{secrets.token_hex(6)}"
    try:
        hosts, boxes, url, answered = laptop.python(
            f"""
from huggingface_hub import SandboxPool
{ASKS}
pool = SandboxPool(name={pool!r}, sandboxes_per_host=2, idle_timeout="1h")
hosts = pool.warm(1)
boxes = [pool.create(env={{"N": n}}) for n in range(3)]
boxes[0].files.write("/x", b"of the laptop" * 300_000)
boxes[0].files.write("/server.py", {SERVES!r})
boxes[0].run(["python3", "server.py"], background=True)
url = boxes[0].proxy_url_for(8000, "/a%20b?c")
out([hosts, [[box.id, box.run("echo $N").stdout] for box in boxes], url, ask(url, boxes[0].proxy_headers)])
""",
            timeout=240,
        )
        assert [text for _, text in boxes] == ["0\n", "1\n", "2\n"]
        assert [box.split(".")[0] for box, _ in boxes[:2]] == [hosts[0]] * 2 != [boxes[2][0].split(".")[0]] * 2
        assert url.startswith(f"https://{hosts[0]}--49983.{DOMAIN}/v1/sandboxes/")
        assert answered == "/a%20b?c"

        second = trainer.python(
            f"""
from huggingface_hub import Sandbox, SandboxPool
{ASKS}
box = Sandbox.connect({boxes[0][0]!r})
found = [len(box.files.read("/x")), box.run("echo $N").stdout]
found.append(ask(box.proxy_url_for(8000, "/again"), box.proxy_headers))
Sandbox.connect({boxes[1][0]!r}).kill()
found.append(SandboxPool.connect({pool!r}).create(env={{"N": "new"}}).host_id)
out(found)
""",
            timeout=240,
        )
        both = {box.split(".")[0] for box, _ in boxes}
        assert second[:3] == [13 * 300_000, "0\n", "/again"] and second[3] in both

        assert pool in trainer.hf("sandbox", "pool", "ls", timeout=120).stdout
        said = trainer.hf("sandbox", "create", "--pool", pool, timeout=120)
        made = re.search(r"[0-9a-f]{24}\.[0-9a-f]{16}", said.stdout + said.stderr)
        assert made and made[0][:24] in both, said
        local = laptop.home.parent / "file"
        local.write_bytes(b"copied" * 500_000)
        laptop.hf("sandbox", "cp", str(local), f"{made[0]}:/file", timeout=120)
        assert trainer.hf("sandbox", "exec", made[0], "--", "wc", "-c", "file", timeout=120).stdout == "3000000 file\n"
    finally:
        trainer.hf("sandbox", "pool", "delete", pool, "-y", timeout=120)


def test_who_trusts_somebody_else_is_not_deceived(
    server: Server, clients: tuple[Machine, Machine], tmp_path: Path
) -> None:
    ask = f"import urllib.request; urllib.request.urlopen('https://{NAME}/healthz')"
    with pytest.raises(AssertionError, match="CERTIFICATE_VERIFY_FAILED"):
        clients[1].python(ask, {"SSL_CERT_FILE": str(Authority(tmp_path).root)})
