"""A server for several machines: a public name, a wildcard record, and a certificate of somebody else's authority.

The clients run on machines of their own (`machines.py`): they find the server by a name service, and trust that
authority and nothing else. The server speaks https itself, or a proxy does on another machine. What is configured is
what `docs/machines.md` says.
"""

import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509

import machines
from authorities import Authority, Pair
from clients import ROOT, Client, Server, eventually, make_client
from machines import Machine, Network

NAME = "runstead.example.com"
DOMAIN = "jobs.example.com"
LIVE = f"/etc/letsencrypt/live/{NAME}"
APP = ROOT / "tests" / "ports_app.py"
WAYS = ("itself", "caddy", "nginx")


@dataclass
class Place:
    """A server, and how it is reached from elsewhere."""

    server: Server
    name: str
    domain: str
    pair: Pair
    authority: Authority
    machine: Machine  # that of the server
    laptop: Machine
    trainer: Machine
    gateway: Machine | None = None

    @property
    def url(self) -> str:
        return f"https://{self.name}"

    def client(self, version: str, machine: Machine, home: Path) -> "RemoteClient":
        made = make_client(version, self.server, home)
        return RemoteClient(version, made.server, home / machine.name, machine=machine, trusts=self.authority.root)


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


def documented(language: str, number: int = 0) -> str:
    """A block of the page that operators follow."""
    page = (ROOT / "docs" / "machines.md").read_text()
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", page, re.MULTILINE | re.DOTALL)
    indent, text = found[number]
    return text.replace(f"\n{indent}", "\n").removeprefix(indent)


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with machines.network(tmp_path_factory.mktemp("machines")) as made:
        yield made


@pytest.fixture(scope="module")
def at(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Place]]:
    """Say how the server shall be reached; each is started when it is asked for first."""
    places: dict[str, Place] = {}
    authority = Authority(tmp_path_factory.mktemp("authority"))
    laptop, trainer = network.machine("laptop"), network.machine("trainer")

    with ExitStack() as stack:

        def place(way: str) -> Place:
            if way not in places:
                folder = tmp_path_factory.mktemp(way)
                places[way] = made = _place(way, network, authority, laptop, trainer, folder)
                stack.callback(made.server.stop)
            return places[way]

        yield place


def _place(way: str, network: Network, authority: Authority, laptop: Machine, trainer: Machine, folder: Path) -> Place:
    if way in ("caddy", "nginx") and shutil.which(way) is None:
        pytest.skip(f"needs the Debian package {way}")
    name, domain = (NAME, DOMAIN) if way == "itself" else (f"{way}.example.com", f"{way}-jobs.example.com")
    pair = Pair(folder / "fullchain.pem", folder / "privkey.pem")
    pair.put(authority.issue(name, f"*.{domain}"))
    machine = network.machine(f"server-{way}")
    gateway = network.machine(f"gate-{way}") if way != "itself" else None

    def here(text: str) -> str:
        return text.replace(LIVE, str(folder)).replace(NAME, name).replace(DOMAIN, domain)

    configuration = here(documented("toml", 0 if gateway is None else 1))
    if gateway is not None:
        addresses = {'host = "127.0.0.1"': f'host = "{machine.address}"', '["127.0.0.1"]': f'["{gateway.address}"]'}
        for written, ours in addresses.items():
            assert written in configuration
            configuration = configuration.replace(written, ours)
        text = here(documented(way)).replace("127.0.0.1:", f"{machine.address}:")
        _start_proxy(gateway, way, text, folder)
    (folder / "runstead.toml").write_text(configuration)
    program = (*machine.inside, sys.executable, "-m", "runstead.cli")
    flags = ("--stop-jobs-at-exit", "--config", str(folder / "runstead.toml"))
    server = Server(folder / "data", flags, {}, program, port=443 if gateway is None else 5627).start()
    network.name(gateway or machine, name, f"*.{domain}")
    made = Place(server, name, domain, pair, authority, machine, laptop, trainer, gateway)
    ask = f"import urllib.request; print(urllib.request.urlopen({made.url!r} + '/healthz').status)"
    answered = eventually(lambda: laptop.python(ask, trusts=authority.root, check=False).stdout == "200\n", within=60)
    assert answered, [path.read_text()[-3000:] for path in folder.glob("*.log")]
    return made


def _start_proxy(gateway: Machine, way: str, text: str, folder: Path) -> None:
    file = folder / f"{way}.conf"
    log = folder / f"{way}.log"
    if way == "caddy":
        file.write_text(text)
        words = ("env", f"HOME={folder}", f"XDG_DATA_HOME={folder}", f"XDG_CONFIG_HOME={folder}")
        gateway.start(*words, "caddy", "run", "--adapter", "caddyfile", "--config", str(file), log=log)
        return
    paths = "".join(f"{kind}_temp_path {folder};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    alone = f"daemon off; master_process off; user root; pid {folder}/pid; error_log {log}; events {{}}"
    file.write_text(f"{alone}\nhttp {{ access_log off; {paths}\n{text}\n}}\n")
    gateway.start("nginx", "-c", str(file), "-e", str(log), log=log)


# Pools


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


def commands(pool: str, hosts: set[str], laptop: Client, trainer: Client, folder: Path) -> None:
    """Use a pool by the command line."""
    assert pool in trainer.hf("sandbox", "pool", "ls", timeout=120).stdout
    said = trainer.hf("sandbox", "create", "--pool", pool, timeout=120)
    made = re.search(r"[0-9a-f]{24}\.[0-9a-f]{16}", said.stdout + said.stderr)
    assert made and made[0][:24] in hosts, said
    local = folder / "file"
    local.write_bytes(b"copied" * 500_000)
    laptop.hf("sandbox", "cp", str(local), f"{made[0]}:/file", timeout=120)
    assert trainer.hf("sandbox", "exec", made[0], "--", "wc", "-c", "file", timeout=120).stdout == "3000000 file\n"


@pytest.mark.parametrize(
    ("way", "version"), [("itself", "2.4.0"), ("itself", "1.28.0"), ("caddy", "2.4.0"), ("nginx", "2.4.0")]
)
def test_pools_from_several_machines(way: str, version: str, at: Callable[[str], Place], tmp_path: Path) -> None:
    place = at(way)
    laptop, trainer = (place.client(version, one, tmp_path) for one in (place.laptop, place.trainer))
    pool = f"pool-{secrets.token_hex(6)}"
    try:
        hosts, boxes, url, answered, streamed = laptop.python(
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
# It goes on when its first line was seen here.
waits = "echo one; while [ ! -e go ]; do sleep 0.05; done; echo two"
seen = []
def see(text):
    seen.append(text)
    if len(seen) == 1:
        boxes[0].files.write("/go", "")
boxes[0].run(waits, on_stdout=see, timeout=60)
out([hosts, [[box.id, box.run("echo $N").stdout] for box in boxes], url, ask(url, boxes[0].proxy_headers), seen])
""",
            timeout=240,
        )
        assert [text for _, text in boxes] == ["0\n", "1\n", "2\n"]
        assert [box.split(".")[0] for box, _ in boxes[:2]] == [hosts[0]] * 2 != [boxes[2][0].split(".")[0]] * 2
        assert url.startswith(f"https://{hosts[0]}--49983.{place.domain}/v1/sandboxes/")
        assert answered == "/a%20b?c"
        assert "".join(streamed) == "one\ntwo\n"

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

        if way == "itself":
            commands(pool, both, laptop, trainer, tmp_path)
    finally:
        trainer.hf("sandbox", "pool", "delete", pool, "-y", timeout=120)


def test_who_trusts_somebody_else_is_not_deceived(at: Callable[[str], Place], tmp_path: Path) -> None:
    place = at("itself")
    ask = f"import urllib.request; urllib.request.urlopen({place.url!r})"
    with pytest.raises(AssertionError, match="CERTIFICATE_VERIFY_FAILED"):
        place.trainer.python(ask, trusts=Authority(tmp_path).root)


# Ports of jobs


# Run on a client's machine: what a program in a job sees of a request, events one by one, and a WebSocket.
USES = """
import json, sys, time
import httpx2
from websockets.sync.client import connect
http, ws, token = sys.argv[1:]
headers = {"Authorization": f"Bearer {token}"}
forged = headers | {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "gopher", "X-Forwarded-Host": "evil",
                    "Forwarded": "for=203.0.113.9", "X-Real-IP": "203.0.113.9"}
with httpx2.Client(timeout=60) as client:
    for url in (ws, http + "/x"):
        while (answer := client.get(url, headers=forged)).status_code == 503:  # it does not listen yet
            time.sleep(0.05)
    fields = {name.lower(): value for name, value in answer.json()["fields"]}
    events = []
    with client.stream("GET", http + "/events", headers=headers) as answer:
        for line in answer.iter_lines():
            if line.startswith("data:"):
                events.append(line)
                client.post(http + "/step", headers=headers)
with connect("wss" + ws.removeprefix("https").removeprefix("http"), additional_headers=headers) as session:
    session.send("text")
    said = session.recv()
print(json.dumps([fields, events, said]))
"""


@pytest.mark.parametrize("way", WAYS)
def test_ports_streams_and_websockets(way: str, at: Callable[[str], Place], tmp_path: Path) -> None:
    place = at(way)
    hub = place.client("2.4.0", place.laptop, tmp_path)
    words = ["--expose", "8000", "--expose", "8001", "python:3.12", sys.executable, str(APP), "8000", "8001"]
    said = hub.hf("jobs", "run", "-d", *words).stdout
    job = re.findall(r"^ *id: ([0-9a-f]{24})", said, re.MULTILINE)[0]
    urls = [f"https://{job}--{port}.{place.domain}" for port in (8000, 8001)]
    assert (
        hub.python(f"from huggingface_hub import inspect_job; out(inspect_job(job_id={job!r}).status.expose_urls)")
        == urls
    )
    used = place.laptop.python(USES, *urls, place.server.token, trusts=place.authority.root)
    fields, events, answered = json.loads(used.stdout)
    assert fields["x-forwarded-for"] == place.laptop.address
    assert (fields["x-forwarded-proto"], fields["x-forwarded-host"], fields["host"]) == (
        *("https", urlsplit(urls[0]).netloc, urlsplit(urls[0]).netloc),
    )
    assert not {"forwarded", "x-real-ip", "authorization"} & set(fields)
    assert events == [f"data: {number}" for number in range(5)]
    assert answered == "text"
    hub.hf("jobs", "cancel", job)


# What strangers can say


def test_a_proxy_is_believed_and_strangers_are_not(at: Callable[[str], Place], tmp_path: Path) -> None:
    """Who comes past the proxy, or through the server's own way as a proxy, is taken for what he is."""
    place = at("nginx")
    assert place.gateway is not None
    hub = place.client("2.4.0", place.laptop, tmp_path)
    words = ["--expose", "8000", "python:3.12", sys.executable, str(APP), "8000", "8001"]
    said = hub.hf("jobs", "run", "-d", *words).stdout
    job = re.findall(r"^ *id: ([0-9a-f]{24})", said, re.MULTILINE)[0]
    host = f"{job}--8000.{place.domain}"
    for machine, seen in (
        (place.gateway, ["203.0.113.9", "https"]),
        (place.trainer, [place.trainer.address, "http"]),
        (place.machine, [place.machine.address, "http"]),
    ):
        words = [place.machine.address, host, place.server.token]
        done = machine.python(FORGES, *words, trusts=place.authority.root)
        assert json.loads(done.stdout) == seen, machine.name
    hub.hf("jobs", "cancel", job)


FORGES = """
import http.client, json, sys, time
address, host, token = sys.argv[1:]
fields = {"Host": host, "Authorization": f"Bearer {token}",
          "X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "https"}
while True:
    connection = http.client.HTTPConnection(address, 5627, timeout=60)
    connection.request("GET", "/x", headers=fields)
    answer = connection.getresponse()
    if answer.status != 503:  # it does not listen yet
        break
    time.sleep(0.05)
seen = dict(json.loads(answer.read())["fields"])
print(json.dumps([seen["X-Forwarded-For"], seen["X-Forwarded-Proto"]]))
"""


# A browser signs in, and is let in to a port that is a path of the same origin.
SIGNS_IN = """
import json, sys, httpx2
url, name, job, token = sys.argv[1:]
headers = {"Accept": "text/html", "Host": name, "Origin": "https://" + name}
entered = httpx2.post(url + "/login", data={"token": token, "next": "/"}, headers=headers, timeout=60)
cookie = entered.headers["set-cookie"]
headers["Cookie"] = cookie.partition(";")[0]
port = httpx2.get(f"{url}/jobs-proxy/{job}--8000.port/x", headers=headers, timeout=60)
print(json.dumps([cookie, port.status_code, port.headers["location"]]))
"""


@pytest.mark.parametrize("way", [*WAYS, "a proxy that is not named"])
def test_browsers_sign_in(way: str, at: Callable[[str], Place], tmp_path: Path) -> None:
    place = at(way if way in WAYS else "nginx")
    url = place.url if way in WAYS else f"http://{place.machine.address}:5627"
    hub = place.client("2.4.0", place.laptop, tmp_path)
    said = hub.hf("jobs", "run", "-d", "--expose", "8000", "python:3.12", "sleep", "300").stdout
    job = re.findall(r"^ *id: ([0-9a-f]{24})", said, re.MULTILINE)[0]
    words = [url, place.name, job, place.server.token]
    done = place.laptop.python(SIGNS_IN, *words, trusts=place.authority.root)
    cookie, status, location = json.loads(done.stdout)
    assert cookie.startswith("__Host-") and "; Secure" in cookie
    assert (status, location.startswith("/login")) == (303, False), location
    assert re.fullmatch(rf"/jobs-proxy/{job}--8000\.[\w-]{{40,}}/x", location)
    hub.hf("jobs", "cancel", job)


# Certificates


# A connection is kept while others are made, until one is shown the certificate with this number.
WATCHES = """
import http.client, json, ssl, sys, time
from pathlib import Path
from cryptography import x509
name, ready, expected = sys.argv[1:]
def connected():
    connection = http.client.HTTPSConnection(name, timeout=60)
    connection.connect()
    shown = connection.sock.getpeercert(binary_form=True)
    return connection, str(x509.load_der_x509_certificate(shown).serial_number)
def asked(connection):
    connection.request("GET", "/healthz")
    answer = connection.getresponse()
    answer.read()
    return answer.status
kept, first = connected()
statuses = [asked(kept)]
Path(ready).touch()
ends = time.monotonic() + 60
while True:
    other, shown = connected()
    statuses.append(asked(other))
    other.close()
    if shown == expected or time.monotonic() > ends:
        break
    time.sleep(0.1)
print(json.dumps([first, shown, set(statuses) == {200}, asked(kept)]))
"""


def serial(pair: Pair) -> str:
    return str(x509.load_pem_x509_certificate(pair.certificate.read_bytes()).serial_number)


def test_a_certificate_is_renewed_under_the_server(at: Callable[[str], Place], tmp_path: Path) -> None:
    place = at("itself")
    before, ready = serial(place.pair), tmp_path / "ready"
    fresh, stray = (place.authority.issue(place.name, f"*.{place.domain}") for _ in range(2))
    with ThreadPoolExecutor(1) as pool:
        words = (place.name, str(ready), serial(fresh))
        watching = pool.submit(place.laptop.python, WATCHES, *words, trusts=place.authority.root)
        assert eventually(ready.exists, within=60)
        place.pair.put(fresh)
        assert json.loads(watching.result().stdout) == [before, serial(fresh), True, 200]

    place.pair.certificate.write_bytes(stray.certificate.read_bytes())  # and its key does not come
    said = f"the key {place.pair.key} does not belong to the certificate {place.pair.certificate}"
    assert eventually(lambda: said in place.server.log.read_text(), within=60)
    words = (place.name, str(ready), serial(fresh))
    seen = json.loads(place.laptop.python(WATCHES, *words, trusts=place.authority.root).stdout)
    assert seen == [serial(fresh), serial(fresh), True, 200]
    place.pair.put(fresh)


def test_doctor_asks_for_the_names_and_the_certificate(at: Callable[[str], Place], tmp_path: Path) -> None:
    def findings(place: Place, file: Path) -> list[tuple[str, str]]:
        words = ("-m", "runstead.cli", "doctor", "--json", "--config", str(file), "--data-dir", str(tmp_path / "data"))
        environment = machines.without_proxies(os.environ) | {"SSL_CERT_FILE": str(place.authority.root)}
        done = place.machine.run(sys.executable, *words, check=False, env=environment)
        found = json.loads(done.stdout)["findings"]
        return [(one["level"], one["text"]) for one in found if one["subject"] in ("https", "names")]

    place = at("itself")
    address = place.machine.address
    file = place.pair.certificate.with_name("runstead.toml")
    [https, *names] = findings(place, file)
    assert https[0] == "ok" and f"a certificate for {place.name}, *.{place.domain} until " in https[1]
    assert names == [("ok", f"{place.name} is {address}"), ("ok", f"*.{place.domain} is {address}")]
    other = tmp_path / "other.toml"
    other.write_text(file.read_text().replace(place.domain, "elsewhere.example.com"))
    [_, https, _, names] = findings(place, other)
    assert https[0] == "missing" and https[1].endswith(
        "and not for *.elsewhere.example.com: clients refuse the hosts of ports and of sandbox pools"
    )
    assert names[0] == "missing" and "*.elsewhere.example.com is not known" in names[1]
