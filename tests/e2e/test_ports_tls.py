"""Exposed ports by https: one port for both, certificates of one's own, host names without a name service."""

import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest
from websockets.sync.client import connect

from authorities import Authority, Pair
from clients import Client, Server, eventually, make_client

APP = Path(__file__).parents[1] / "ports_app.py"
DOMAIN = "hf-jobs.localhost"
Start = Callable[[Pair], "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    environment = {
        "RUNSTEAD_EXECUTOR_KIND": "process",
        "RUNSTEAD_PROXY_TLS": "own",
        "RUNSTEAD_PROXY_DOMAIN": DOMAIN,
    }
    data_dir = tmp_path_factory.mktemp("tls") / "data"
    started = Server(data_dir, ("--stop-jobs-at-exit",), environment).start()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def authority(server: Server) -> str:
    return server.run("tls", "ca").stdout.strip()


@pytest.fixture(scope="module")
def hub(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return make_client("2.4.0", server, tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def job(hub: Client) -> str:
    words = ["--expose", "8000", "--expose", "8001", "python:3.12", sys.executable, str(APP), "8000", "8001"]
    said = hub.hf("jobs", "run", "-d", *words).stdout
    return re.findall(r"^ *id: ([0-9a-f]{24})", said, re.MULTILINE)[0]


def client_of(server: Server, authority: str) -> httpx2.Client:
    """By way of this server as a proxy: nothing resolves the names."""
    trust = ssl.create_default_context(cafile=authority)
    headers = {"Authorization": f"Bearer {server.token}"}
    return httpx2.Client(proxy=server.url, verify=trust, headers=headers, trust_env=False, timeout=20)


def test_both_on_one_port(server: Server, authority: str) -> None:
    assert httpx2.get(f"{server.url}/healthz", trust_env=False).status_code == 200
    trust = ssl.create_default_context(cafile=authority)
    for name in ("127.0.0.1", "localhost"):
        url = f"https://{name}:{server.port}/healthz"
        assert httpx2.get(url, verify=trust, trust_env=False).status_code == 200
    with pytest.raises(httpx2.ConnectError):
        httpx2.get(f"https://127.0.0.1:{server.port}/healthz", trust_env=False)


def test_the_hub_client_by_https(server: Server, hub: Client, authority: str) -> None:
    done = subprocess.run(
        [str(hub.bin / "hf"), "auth", "whoami"],
        env=hub.environment | {"HF_ENDPOINT": f"https://localhost:{server.port}", "SSL_CERT_FILE": authority},
        capture_output=True,
        text=True,
        check=False,
    )
    assert server.owner in done.stdout, done.stderr


def test_a_host_for_each_port(server: Server, authority: str, job: str) -> None:
    url = f"https://{job}--8000.{DOMAIN}:{server.port}"
    found = httpx2.get(
        f"{server.url}/api/jobs/{server.owner}/{job}",
        headers={"Authorization": f"Bearer {server.token}"},
        trust_env=False,
    ).json()
    assert found["status"]["exposeUrls"] == [url, url.replace("--8000", "--8001")]
    with client_of(server, authority) as client:
        assert eventually(lambda: client.get(f"{url}/x").status_code == 200, within=20)
        said = client.get(f"{url}/x").json()
        fields = dict(said["fields"])
        assert (fields["X-Forwarded-Proto"], fields["Host"]) == ("https", url.partition("//")[2])
        assert client.get(f"{url}/big?30000000").content[:3] == b"\x00\x01\x02"
        assert client.post(f"{url}/x", content=b"x" * 300_000).json()["body"] == "x" * 300_000
        assert client.get(f"{url}/x", headers={"Authorization": ""}).status_code == 401


def test_a_websocket_by_tls(server: Server, authority: str, job: str) -> None:
    trust = ssl.create_default_context(cafile=authority)
    headers = {"Authorization": f"Bearer {server.token}"}
    url = f"wss://{job}--8001.{DOMAIN}:{server.port}/"
    with (
        socket.create_connection(("127.0.0.1", server.port)) as connection,
        connect(url, sock=connection, ssl=trust, additional_headers=headers) as session,
    ):
        for message in ("text", b"x" * 500_000):
            session.send(message)
            assert session.recv() == message


def test_it_is_a_proxy_for_its_own_names_alone(server: Server, authority: str) -> None:
    with client_of(server, authority) as client, pytest.raises(httpx2.ProxyError):
        client.get("https://example.com/")


def test_those_who_say_nothing_and_those_who_say_nonsense_keep_nobody(server: Server) -> None:
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(200)]
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(b"\x16\x03\x01\x00\x05hello")
        assert connection.recv(100)[:1] in (b"", b"\x15")
    assert httpx2.get(f"{server.url}/healthz", trust_env=False).status_code == 200
    for one in silent:
        one.close()


def test_the_key_is_private_and_the_authority_outlives_a_restart(server: Server, authority: str) -> None:
    folder = Path(authority).parent
    for name in ("ca.key", "server.key"):
        assert (folder / name).stat().st_mode & 0o077 == 0
    before = Path(authority).read_bytes(), (folder / "server.pem").read_bytes()
    server.terminate()
    server.start()
    assert (Path(authority).read_bytes(), (folder / "server.pem").read_bytes()) == before


def test_given_files(server: Server, authority: str, tmp_path: Path) -> None:
    folder = Path(authority).parent
    environment = {
        "RUNSTEAD_PROXY_TLS": "files",
        "RUNSTEAD_PROXY_CERTIFICATE": str(folder / "server.pem"),
        "RUNSTEAD_PROXY_KEY": str(folder / "server.key"),
    }
    other = Server(tmp_path / "data", (), environment).start()
    trust = ssl.create_default_context(cafile=authority)
    assert httpx2.get(f"https://localhost:{other.port}/healthz", verify=trust, trust_env=False).status_code == 200
    other.stop()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Start]:
    """Start a server with a certificate, as an operator sees it."""
    with ExitStack() as stack:

        def start(pair: Pair) -> "subprocess.Popen[str]":
            settings = {
                "RUNSTEAD_EXECUTOR_KIND": "process",
                "RUNSTEAD_SERVER_PUBLIC_URL": "https://runstead.example.com",
                "RUNSTEAD_PROXY_DOMAIN": "jobs.example.com",
                "RUNSTEAD_PROXY_TLS": "files",
                "RUNSTEAD_PROXY_CERTIFICATE": str(pair.certificate),
                "RUNSTEAD_PROXY_KEY": str(pair.key),
            }
            words = [sys.executable, "-m", "runstead.cli", "serve", "--port", "0", "--data-dir", str(tmp_path / "data")]
            process = stack.enter_context(
                subprocess.Popen(
                    words, env=os.environ | settings, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
                )
            )
            stack.callback(process.kill)
            return process

        yield start


def test_a_pair_that_is_none_is_refused_at_the_start(serve: Start, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "authority")
    names = ("runstead.example.com", "*.jobs.example.com")
    certificate, key = authority.issue(*names).certificate, authority.issue(*names).key
    said, _ = (process := serve(Pair(certificate, key))).communicate(timeout=60)
    assert process.returncode == 1
    assert f"there is no https: the key {key} does not belong to the certificate {certificate}" in said
    assert "Traceback" not in said


def test_what_clients_will_refuse_is_said_at_the_start(serve: Start, tmp_path: Path) -> None:
    pair = Authority(tmp_path / "authority").issue("runstead.example.com", starts=-9, ends=-1)
    process = serve(pair)
    assert process.stdout is not None
    notes: list[str] = []
    for line in process.stdout:
        if line.startswith("Note: "):
            notes.append(line)
        if "HF_TOKEN=" in line:
            break
    process.terminate()
    assert process.wait(30) == 0
    assert any(f"{pair.certificate} ended on " in note and "renew it" in note for note in notes), notes
    assert any("not for *.jobs.example.com" in note and "sandbox pools" in note for note in notes), notes
