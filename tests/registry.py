"""Real registries for the tests, images to put into them, and a proxy before one that cuts and lies.

The registry is Debian's `docker-registry`. Archives of layers are written by Python's own module and by GNU tar,
which know nothing of the reader that is tested.
"""

import base64
import contextlib
import ctypes
import gzip
import hashlib
import http.client
import io
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import sysconfig
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import pytest

ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
OCI = "application/vnd.oci.image"
DOCKER = "application/vnd.docker"


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


# ---- images ----


@dataclass
class Archive:
    """A layer in the making."""

    members: list[tuple[tarfile.TarInfo, bytes]] = field(default_factory=list)

    def add(self, name: str, content: bytes = b"", **facts: Any) -> Self:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        info.mode = 0o644
        for key, value in facts.items():
            setattr(info, key, value)
        self.members.append((info, content))
        return self

    def folder(self, name: str, mode: int = 0o755, **facts: Any) -> Self:
        return self.add(name, type=tarfile.DIRTYPE, mode=mode, **facts)

    def link(self, name: str, target: str, **facts: Any) -> Self:
        return self.add(name, type=tarfile.SYMTYPE, linkname=target, **facts)

    def hard(self, name: str, target: str, **facts: Any) -> Self:
        return self.add(name, type=tarfile.LNKTYPE, linkname=target, **facts)

    def bytes(self, format: int = tarfile.PAX_FORMAT) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=format) as tar:
            for info, content in self.members:
                tar.addfile(info, io.BytesIO(content))
        return out.getvalue()


def archive_of(folder: Path) -> bytes:
    """The archive of a directory by GNU tar, all of it root's."""
    command = ["tar", "--numeric-owner", "--owner=0", "--group=0", "-C", str(folder), "-cf", "-", "."]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def zstd_compress(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-c", "-3"], input=data, check=True, stdout=subprocess.PIPE).stdout


COMPRESS: Mapping[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 1, mtime=0),
    "zstd": zstd_compress,
    "": lambda data: data,
}


@dataclass(frozen=True)
class Built:
    """The blobs of an image; the last is its manifest."""

    blobs: tuple[bytes, ...]
    manifest: bytes
    media_type: str

    @property
    def digest(self) -> str:
        return sha256(self.manifest)


def build(
    archives: Sequence[bytes],
    *,
    compression: str = "gzip",
    kind: str = "oci",
    config: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Built:
    """Make an image of archives. `config` is what it says about running, `changes` replace parts of the rest."""
    layers = [COMPRESS[compression](data) for data in archives]
    described = {
        "architecture": ARCHITECTURE,
        "os": "linux",
        "created": "2026-01-01T00:00:00Z",
        "config": {"Env": ["PATH=/bin:/usr/bin"], **(config or {})},
        "rootfs": {"type": "layers", "diff_ids": [sha256(data) for data in archives]},
    } | changes
    configuration = json.dumps(described).encode()
    if kind == "oci":
        types = f"{OCI}.manifest.v1+json", f"{OCI}.config.v1+json", f"{OCI}.layer.v1.tar"
        suffix = f"+{compression}" if compression else ""
    else:
        types = (
            f"{DOCKER}.distribution.manifest.v2+json",
            f"{DOCKER}.container.image.v1+json",
            f"{DOCKER}.image.rootfs.diff.tar",
        )
        suffix = f".{compression}" if compression else ""
    manifest = {
        "schemaVersion": 2,
        "mediaType": types[0],
        "config": {"mediaType": types[1], "size": len(configuration), "digest": sha256(configuration)},
        "layers": [{"mediaType": types[2] + suffix, "size": len(d), "digest": sha256(d)} for d in layers],
    }
    return Built((configuration, *layers), json.dumps(manifest).encode(), types[0])


def busybox_archive() -> bytes:
    """The archive of a system that is nothing but busybox, with every command it has."""
    program = shutil.which("busybox")
    if (
        program is None
        or b"statically linked" not in subprocess.run(["file", "-L", program], capture_output=True).stdout
    ):
        program = "/bin/busybox"
        if not Path(program).exists():
            pytest.skip("needs busybox-static")
    applets = subprocess.run([program, "--list"], check=True, capture_output=True, text=True).stdout.split()
    tar = Archive().folder("bin").folder("tmp", 0o1777).folder("root", 0o700).folder("etc").folder("var").folder("work")
    tar.add("bin/busybox", Path(program).read_bytes(), mode=0o755)
    for name in applets:
        if name != "busybox":
            tar.hard(f"bin/{name}", "bin/busybox", mode=0o755)
    tar.add("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:a user:/tmp:/bin/sh\n")
    tar.add("etc/group", b"root:x:0:\nuser:x:1000:\nextra:x:2000:user\n")
    return tar.bytes()


def python_archive(folder: Path) -> bytes:
    """The archive of this machine's Python with uv and the libraries that they need; made once per folder."""
    kept = folder / "python.tar"
    if kept.exists():
        return kept.read_bytes()
    root = folder / "root"
    base = Path(sys.base_prefix)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    library = Path(sysconfig.get_path("stdlib"))
    usual = root / "usr" / "local"
    unneeded = shutil.ignore_patterns("test", "tests", "idlelib", "turtledemo", "site-packages", "dist-packages")
    shutil.copytree(library, usual / "lib" / version, ignore=unneeded, symlinks=True, ignore_dangling_symlinks=True)
    (usual / "bin").mkdir(parents=True)
    shutil.copy2(base / "bin" / version, usual / "bin" / version)
    for name in ("python3", "python"):
        (usual / "bin" / name).symlink_to(version)
    uv = Path(sys.executable).parent / "uv"
    if uv.exists():
        shutil.copy2(uv, usual / "bin" / "uv")
    needing = [
        usual / "bin" / version,
        *([uv] if uv.exists() else []),
        *(usual / "lib" / version / "lib-dynload").glob("*.so"),
    ]
    for path in {one for program in needing for one in _libraries(program)}:
        target = root / str(path).lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copy2(path, target)
    for name, mode in (("tmp", 0o1777), ("etc", 0o755), ("root", 0o700)):
        (root / name).mkdir(exist_ok=True)
        (root / name).chmod(mode)
    (root / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    data = archive_of(root)
    fresh = kept.with_suffix(f".{os.getpid()}")
    fresh.write_bytes(data)
    fresh.rename(kept)
    shutil.rmtree(root)
    return data


def _libraries(program: Path) -> list[Path]:
    listed = subprocess.run(["ldd", str(program)], capture_output=True, text=True).stdout
    words = [word for line in listed.splitlines() for word in line.split() if word.startswith("/")]
    return [Path(word) for word in words]


# ---- registries ----


@dataclass
class RegistryServer:
    """A registry that runs; `host` is how images in it are named."""

    host: str
    log: Path
    scheme: str = "http"
    authorization: str | None = None
    certificate: Path | None = None

    def push(self, name: str, image: Built, *tags: str) -> str:
        """Put an image in; return its digest."""
        for blob in image.blobs:
            self._put_blob(name, blob)
        for tag in tags or (image.digest,):
            self._call("PUT", f"/v2/{name}/manifests/{tag}", image.manifest, {"Content-Type": image.media_type})
        return image.digest

    def push_index(self, name: str, manifests: Sequence[Mapping[str, Any]], *tags: str, kind: str = "oci") -> str:
        """Put in an index of manifests that are there."""
        media_type = f"{OCI}.index.v1+json" if kind == "oci" else f"{DOCKER}.distribution.manifest.list.v2+json"
        body = json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": list(manifests)}).encode()
        for tag in tags:
            self._call("PUT", f"/v2/{name}/manifests/{tag}", body, {"Content-Type": media_type})
        return sha256(body)

    def _put_blob(self, name: str, data: bytes) -> None:
        location = self._call("POST", f"/v2/{name}/blobs/uploads/", b"", {})["Location"]
        parts = urlsplit(location)
        query = f"{parts.query}&" if parts.query else ""
        kind = {"Content-Type": "application/octet-stream"}
        self._call("PUT", f"{parts.path}?{query}digest={sha256(data)}", data, kind)

    def _call(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> Mapping[str, str]:
        own = {"Authorization": self.authorization} if self.authorization else {}
        if self.scheme == "https":
            context = ssl.create_default_context(cafile=self.certificate)
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(self.host, context=context, timeout=60)
        else:
            connection = http.client.HTTPConnection(self.host, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, {**headers, **own})
            answer = connection.getresponse()
            words = answer.read()
            assert answer.status in (201, 202), (answer.status, words)
            return dict(answer.getheaders())


@contextmanager
def registry(
    folder: Path,
    *,
    login: tuple[str, str] | None = None,
    tls: bool = False,
    tokens: "TokenServer | None" = None,
    address: str = "127.0.0.1",
) -> Iterator[RegistryServer]:
    """Run a registry over a folder: open, or with a login by name and password, or with tokens of another server."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("needs the Debian package docker-registry")
    folder.mkdir(parents=True, exist_ok=True)
    host = f"{address}:{free_port()}"
    http_part: dict[str, Any] = {"addr": host}
    server = RegistryServer(host, folder / "registry.log")
    if tls:
        server.certificate, key = make_certificate(folder, address)
        http_part["tls"] = {"certificate": str(server.certificate), "key": str(key)}
        server.scheme = "https"
    settings: dict[str, Any] = {
        "version": 0.1,
        "log": {"level": "info"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": http_part,
    }
    if login is not None:
        (folder / "htpasswd").write_text(f"{login[0]}:{_bcrypt(login[1])}\n")
        settings["auth"] = {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}}
        server.authorization = "Basic " + base64.b64encode(":".join(login).encode()).decode()
    if tokens is not None:
        settings["auth"] = {
            "token": {
                "realm": f"http://{tokens.host}/token",
                "service": "test registry",
                "issuer": "test issuer",
                "rootcertbundle": str(tokens.certificate),
            }
        }
    (folder / "registry.yml").write_text(json.dumps(settings))  # JSON is YAML
    with server.log.open("wb") as log:
        process = subprocess.Popen([program, "serve", str(folder / "registry.yml")], stdout=log, stderr=log)
    try:
        _wait_for(host, process)
        yield server
    finally:
        process.terminate()
        process.wait(10)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(host: str, process: "subprocess.Popen[bytes]") -> None:
    address, _, port = host.partition(":")
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection((address, int(port)), 5).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _bcrypt(password: str) -> str:
    crypt = ctypes.CDLL("libcrypt.so.1").crypt
    crypt.restype = ctypes.c_char_p
    hashed = crypt(password.encode(), b"$2b$05$abcdefghijklmnopqrstuu")
    assert hashed.startswith(b"$2"), hashed
    return "$2y$" + hashed.decode()[4:]


def make_certificate(folder: Path, address: str = "127.0.0.1") -> tuple[Path, Path]:
    """Make a certificate for an address, signed by itself, and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=test registry"]
    command += ["-addext", f"subjectAltName=IP:{address}", "-addext", "basicConstraints=critical,CA:TRUE"]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


class TokenServer:
    """Gives tokens to who knows the password, or to everybody, as the Hub of Docker does."""

    def __init__(self, folder: Path, login: tuple[str, str] | None) -> None:
        self.certificate, self._key = make_certificate(folder)
        self.given: list[str] = []  # the scopes that tokens were given for
        expected = "Basic " + base64.b64encode(":".join(login).encode()).decode() if login else None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = parse_qs(urlsplit(self.path).query)
                if expected is not None and self.headers.get("Authorization") != expected:
                    self.send_response(401)
                    body = b'{"details": "incorrect username or password"}'
                else:
                    outer.given.append(asked["scope"][0])
                    self.send_response(200)
                    body = json.dumps({"token": outer.token(asked["scope"][0])}).encode()
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def token(self, scope: str) -> str:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

        certificate = x509.load_pem_x509_certificate(self.certificate.read_bytes())
        raw = base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()
        kind, name, actions = scope.split(":")
        now = datetime.now(UTC)
        head = {"typ": "JWT", "alg": "ES256", "x5c": [raw]}
        claims = {
            "iss": "test issuer",
            "aud": "test registry",
            "sub": "",
            "nbf": int((now - timedelta(seconds=10)).timestamp()),
            "exp": int((now + timedelta(minutes=5)).timestamp()),
            "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
        }
        signed = ".".join(_b64(json.dumps(part).encode()) for part in (head, claims))
        key = serialization.load_pem_private_key(self._key.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{signed}.{_b64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


# ---- faults ----


@dataclass
class Fault:
    """What happens to one answer of the registry."""

    status: int | None = None  # instead of it
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after: int | None = None  # bytes of its body, then the connection closes
    flip_at: int | None = None  # a byte of its body that is wrong
    ignore_range: bool = False
    hold: threading.Event | None = None  # nothing of the body is sent before


class FaultyProxy:
    """Stands before a registry. `fault` is asked for each request: its path, its headers, and how many came before."""

    def __init__(self, behind: RegistryServer, fault: Callable[[str, Mapping[str, str], int], Fault | None]) -> None:
        self.requests: list[tuple[str, str | None]] = []  # path and range
        self.authorizations: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                happens = fault(self.path, dict(self.headers), len(outer.requests)) or Fault()
                outer.requests.append((self.path, asked))
                outer.authorizations.append(self.headers.get("Authorization"))
                if happens.status is not None:
                    self._answer(happens.status, happens.headers, happens.body)
                    return
                headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
                if happens.ignore_range:
                    headers.pop("Range", None)
                connection = http.client.HTTPConnection(behind.host, timeout=30)
                with contextlib.closing(connection):
                    path = self.path.removeprefix(f"http://{behind.host}")
                    connection.request("GET", path, headers=headers)
                    answer = connection.getresponse()
                    body = answer.read()
                    kept = {k: v for k, v in answer.getheaders() if k.lower() not in ("connection", "date")}
                if happens.flip_at is not None:
                    body = body[: happens.flip_at] + bytes([body[happens.flip_at] ^ 1]) + body[happens.flip_at + 1 :]
                if happens.hold is not None:
                    happens.hold.wait(30)
                self._answer(answer.status, kept, body, happens.cut_after)

            def _answer(self, status: int, headers: Mapping[str, str], body: bytes, cut: int | None = None) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() != "content-length":
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(body if cut is None else body[:cut])
                    self.wfile.flush()
                if cut is not None:
                    self.close_connection = True
                    with contextlib.suppress(OSError):
                        self.connection.shutdown(socket.SHUT_RDWR)

            def log_message(self, format: str, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
