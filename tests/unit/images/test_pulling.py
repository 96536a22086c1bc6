"""Images from a real registry, whole and in every form, and what is said when they cannot be had."""

import asyncio
import base64
import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from registry import (
    ARCHITECTURE,
    DOCKER,
    Archive,
    Fault,
    FaultyProxy,
    RegistryServer,
    TokenServer,
    build,
    free_port,
    registry,
    sha256,
)
from runstead.images.image import Image, ImageConfig
from runstead.model.errors import ImageFailure

from .conftest import Opener, small

BIG = os.urandom(3_000_000)


def said(lines: list[str]) -> list[str]:
    return [re.sub(r"127\.0\.0\.1:\d+", "HOST", line) for line in lines]


def content(image: Image, name: str) -> bytes:
    """What a program would find, of the uppermost layer that has it."""
    return next(path.read_bytes() for layer in reversed(image.layers) if (path := layer / name).exists())


@pytest.mark.parametrize("kind", ["oci", "docker"])
@pytest.mark.parametrize("compression", ["gzip", "zstd", ""])
async def test_an_image_in_every_form(server: RegistryServer, library: Opener, kind: str, compression: str) -> None:
    if kind == "docker" and compression == "zstd":
        pytest.skip("Docker's own format has no zstd")
    config = {
        "Env": ["A=1", "B=x=y", "PATH=/bin"],
        "WorkingDir": "/work",
        "User": "1000:7",
        "Entrypoint": ["/entry", "point"],
        "Cmd": ["and", "command"],
        "Labels": {"a": "b"},
        "StopSignal": "SIGQUIT",
    }
    image = small("one", "two", kind=kind, compression=compression, config=config)
    name = f"form/{kind}{compression or 'plain'}"
    digest = server.push(name, image, "1.0")
    lines: list[str] = []
    opened = await library()
    reference = f"{server.host}/{name}:1.0"
    assert opened.find(reference) is None
    found = await opened.get(reference, lines.append)
    assert found.digest == digest
    assert found.reference == reference
    assert found.config == ImageConfig(
        ("A=1", "B=x=y", "PATH=/bin"), "/work", "1000:7", ("/entry", "point"), ("and", "command"), {"a": "b"}, "SIGQUIT"
    )
    assert [sorted(path.name for path in layer.iterdir()) for layer in found.layers] == [["file0"], ["file1"]]
    assert (content(found, "file0"), content(found, "file1")) == (b"one", b"two")
    assert opened.find(reference) == found
    assert said(lines)[0] == f"pulling HOST/{name}:1.0: asking HOST"
    assert re.fullmatch(rf"pulling HOST/{name}:1.0 \d+ % [\d.]+/[\d.]+ MB", said(lines)[1])


async def test_by_digest_and_from_indexes(server: RegistryServer, library: Opener) -> None:
    opened = await library()
    mine, other = small("mine"), small("other", architecture="s390x")
    server.push("index", mine)
    server.push("index", other)
    described = [
        {"mediaType": other.media_type, "digest": other.digest, "size": len(other.manifest),
         "platform": {"os": "linux", "architecture": "s390x"}},
        {"mediaType": mine.media_type, "digest": mine.digest, "size": len(mine.manifest),
         "platform": {"os": "linux", "architecture": ARCHITECTURE}},
        {"mediaType": mine.media_type, "digest": other.digest, "size": len(other.manifest),
         "platform": {"os": "unknown", "architecture": "unknown"}},
    ]  # fmt: skip
    index = server.push_index("index", described, "all")
    docker = [dict(one, mediaType=f"{DOCKER}.distribution.manifest.v2+json") for one in described]
    server.push_index("index", docker, "docker", kind="docker")
    server.push_index("index", described[:1], "foreign")
    for name in ("index:all", "index:docker", f"index@{index}", f"index@{mine.digest}", f"index:all@{index}"):
        assert (await opened.get(f"{server.host}/{name}", print)).digest == mine.digest
    with pytest.raises(ImageFailure, match=f"not built for this machine, linux/{ARCHITECTURE}; it is for: linux/s390x"):
        await opened.get(f"{server.host}/index:foreign", print)
    with pytest.raises(ImageFailure, match="is built for linux/s390x"):
        await opened.get(f"{server.host}/index@{other.digest}", print)


async def test_layers_are_stored_once_and_shared(server: RegistryServer, library: Opener) -> None:
    base = Archive().add("base", BIG).bytes()
    own = Archive().add("own", b"x").bytes()
    server.push("shared/a", build([base]), "1")
    server.push("shared/b", build([base, own], compression="zstd"), "1")  # the same layer in other bytes
    server.push("shared/c", build([own, base, own]), "1")
    opened = await library()
    first = await opened.get(f"{server.host}/shared/a:1", print)
    inode = first.layers[0].stat().st_ino
    lines: list[str] = []
    second = await opened.get(f"{server.host}/shared/b:1", lines.append)
    third = await opened.get(f"{server.host}/shared/c:1", print)
    assert second.layers[0] == first.layers[0]
    assert second.layers[0].stat().st_ino == inode
    assert lines[1].endswith(" MB") and "/3" not in lines[1]  # only the small one was fetched
    assert third.layers == (first.layers[0], second.layers[1])  # each once, where it is uppermost
    assert len(opened.store.layers()) == 2


async def test_ten_at_once_are_one_pull(server: RegistryServer, library: Opener) -> None:
    server.push("once", small("x" * 1000, "y", "z"), "1")
    proxy = FaultyProxy(server, lambda path, headers, number: None)
    opened = await library()
    heard: list[list[str]] = [[] for _ in range(10)]
    found = await asyncio.gather(*(opened.get(f"{proxy.host}/once:1", lines.append) for lines in heard))
    proxy.close()
    assert len({image.digest for image in found}) == 1
    blobs = [path for path, _ in proxy.requests if "/blobs/" in path]
    assert len(blobs) == len(set(blobs)) == 4
    assert all(heard)


async def test_two_servers_unpack_a_layer_once(server: RegistryServer, library: Opener) -> None:
    server.push("twice", build([Archive().add("f", BIG).bytes()]), "1")
    proxy = FaultyProxy(server, lambda path, headers, number: None)
    one, two = await library(), await library()
    await asyncio.gather(*(each.get(f"{proxy.host}/twice:1", print) for each in (one, two)))
    proxy.close()
    layers = [path for path, _ in proxy.requests if "/blobs/" in path]
    assert len(layers) == 3  # both read the configuration; one fetched the layer, the other waited for it
    assert (await two.get(f"{proxy.host}/twice:1", print)).layers[0].is_dir()


async def test_a_pull_goes_on_while_somebody_waits_for_it(server: RegistryServer, library: Opener) -> None:
    server.push("leave", build([Archive().add("f", BIG).bytes()]), "1")
    hold = threading.Event()
    proxy = FaultyProxy(server, lambda path, headers, n: Fault(hold=hold) if "/blobs/" in path and n > 1 else None)
    opened = await library()
    heard = asyncio.Event()
    tasks = [
        asyncio.create_task(opened.get(f"{proxy.host}/leave:1", lambda line: heard.set() if "MB" in line else None))
        for _ in range(2)
    ]
    await heard.wait()
    tasks[0].cancel()
    await asyncio.wait([tasks[0]])
    hold.set()
    assert (await tasks[1]).layers
    proxy.close()


async def test_a_pull_that_nobody_wants_any_more_ends(server: RegistryServer, library: Opener) -> None:
    server.push("unwanted", build([Archive().add("f", BIG + b"1").bytes()]), "1")
    hold = threading.Event()
    proxy = FaultyProxy(server, lambda path, headers, n: Fault(hold=hold) if "/blobs/" in path and n > 1 else None)
    opened = await library()
    heard = asyncio.Event()
    reference = f"{proxy.host}/unwanted:1"
    task = asyncio.create_task(opened.get(reference, lambda line: heard.set() if "MB" in line else None))
    await heard.wait()
    task.cancel()
    await asyncio.wait([task])
    running = subprocess.run(["pgrep", "-f", "runstead.images.program"], capture_output=True, text=True).stdout.split()
    ours = [pid for pid in running if str(opened.store.folder) in Path(f"/proc/{pid}/cmdline").read_text()]
    assert ours == []
    hold.set()
    assert (await opened.get(reference, print)).layers  # the next begins anew
    proxy.close()
    assert list((opened.store.folder / "unpacking").iterdir()) == []


@pytest.mark.parametrize("ignores_ranges", [False, True])
async def test_after_a_cut_it_goes_on_where_it_was(
    server: RegistryServer, library: Opener, ignores_ranges: bool
) -> None:
    image = build([Archive().add("f", BIG).bytes()])
    server.push("cut", image, "1")
    blob = sha256(image.blobs[1])
    cuts = iter([700_000, 1, 900_000])

    def fault(path: str, headers: Mapping[str, str], number: int) -> Fault | None:
        return Fault(cut_after=next(cuts, None), ignore_range=ignores_ranges) if blob in path else None

    proxy = FaultyProxy(server, fault)
    found = await (await library()).get(f"{proxy.host}/cut:1", print)
    proxy.close()
    assert content(found, "f") == BIG
    asked = [wanted for path, wanted in proxy.requests if blob in path]
    assert asked[0] is None
    assert all(wanted is not None and wanted.startswith("bytes=") for wanted in asked[1:])
    assert len(asked) == 4
    if not ignores_ranges:
        assert asked[1] == "bytes=700000-"


async def test_a_registry_that_goes_silent_is_asked_again(server: RegistryServer, library: Opener) -> None:
    image = build([Archive().add("f", BIG).bytes()])
    server.push("silent", image, "1")
    forever = threading.Event()
    blob = sha256(image.blobs[1])
    first = iter([True])

    def fault(path: str, headers: Mapping[str, str], number: int) -> Fault | None:
        return Fault(hold=forever) if blob in path and next(first, False) else None

    proxy = FaultyProxy(server, fault)
    found = await (await library(stall_seconds=0.5)).get(f"{proxy.host}/silent:1", print)
    forever.set()
    proxy.close()
    assert content(found, "f") == BIG


@pytest.mark.parametrize("part", ["layer", "configuration", "manifest"])
async def test_a_byte_that_is_wrong_is_found(server: RegistryServer, library: Opener, part: str) -> None:
    image = build([Archive().add("f", BIG).bytes()], compression="")
    server.push("flip", image, "1")
    wrong = {"layer": sha256(image.blobs[1]), "configuration": sha256(image.blobs[0]), "manifest": image.digest}[part]
    # The byte is one that no reader would stumble over.
    at = {"layer": 600, "configuration": image.blobs[0].index(b"2026"), "manifest": 3}[part]
    proxy = FaultyProxy(server, lambda path, headers, n: Fault(flip_at=at) if wrong in path else None)
    opened = await library()
    with pytest.raises(ImageFailure, match="damaged") as caught:
        await opened.get(f"{proxy.host}/flip@{image.digest}", print)
    proxy.close()
    assert caught.value.again
    assert opened.store.layers() == []
    assert opened.find(f"{proxy.host}/flip@{image.digest}") is None


async def test_a_configuration_that_lies_of_its_layers_is_found(server: RegistryServer, library: Opener) -> None:
    archive = Archive().add("f", b"x").bytes()
    lies = build([archive], rootfs={"type": "layers", "diff_ids": [sha256(b"other")]})
    server.push("lies", lies, "1")
    server.push("lies", build([archive], rootfs={"type": "layers", "diff_ids": []}), "2")
    server.push("lies", build([archive], os="windows"), "3")
    opened = await library()
    for tag, words in (("1", "not what its configuration says"), ("2", "contradicts itself"), ("3", "Linux system")):
        with pytest.raises(ImageFailure, match=words):
            await opened.get(f"{server.host}/lies:{tag}", print)
    assert opened.store.layers() == []


async def test_bombs_are_refused(server: RegistryServer, library: Opener) -> None:
    many = Archive()
    for number in range(500):
        many.add(str(number))
    server.push("bomb", build([Archive().add("f", bytes(50_000_000)).bytes()]), "big")
    server.push("bomb", build([many.bytes()]), "many")
    server.push("bomb", build([Archive().add(f"f{n}", bytes(6_000_000)).bytes() for n in range(3)]), "sum")
    opened = await library(max_image_bytes=10_000_000, max_image_files=100)
    for tag, words in (("big", "max_image_bytes"), ("many", "max_image_files"), ("sum", "max_image_bytes")):
        with pytest.raises(ImageFailure, match=words) as caught:
            await opened.get(f"{server.host}/bomb:{tag}", print)
        assert not caught.value.again
    assert list((opened.store.folder / "unpacking").iterdir()) == []


async def test_hostile_layers_are_refused_with_a_reason(server: RegistryServer, library: Opener) -> None:
    server.push("hostile", build([Archive().add("../../etc/x", b"x").bytes()]), "1")
    server.push("hostile", build([b"this is no archive" * 100]), "2")
    opened = await library()
    for tag, words in (("1", "leads out of it"), ("2", "cannot be unpacked")):
        with pytest.raises(ImageFailure, match=words):
            await opened.get(f"{server.host}/hostile:{tag}", print)


# ---- what registries say ----


async def refusal(library: Opener, image: str, **settings: object) -> ImageFailure:
    opened = await library(**settings)
    with pytest.raises(ImageFailure) as caught:
        await opened.get(image, print)
    return caught.value


async def test_what_is_not_there(server: RegistryServer, library: Opener) -> None:
    server.push("there", small("x"), "1")
    error = await refusal(library, f"{server.host}/there:2")
    assert "manifest unknown" in error.message
    assert "check its name and tag" in error.message
    assert not error.again
    assert not (await refusal(library, f"{server.host}/not/there")).again


async def test_names_that_no_dns_knows(library: Opener) -> None:
    error = await refusal(library, "registry.invalid/x:1")
    assert "there is no address for the name registry.invalid" in error.message


async def test_nobody_listens(library: Opener) -> None:
    error = await refusal(library, f"127.0.0.1:{free_port()}/x:1")
    assert "refused" in error.message
    assert error.again


async def test_a_registry_that_fails_is_asked_again(server: RegistryServer, library: Opener) -> None:
    server.push("fails", small("f"), "1")
    proxy = FaultyProxy(server, lambda path, headers, n: Fault(status=503) if n in (0, 2) else None)
    assert (await (await library()).get(f"{proxy.host}/fails:1", print)).layers
    proxy.close()


async def test_limits_of_a_registry(server: RegistryServer, library: Opener) -> None:
    words = b'{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}'
    proxy = FaultyProxy(server, lambda path, headers, n: Fault(status=429, body=words))
    error = await refusal(library, f"{proxy.host}/x:1")
    assert "You have reached your pull rate limit." in error.message
    assert "log in" in error.message
    assert error.again
    assert len(proxy.requests) == 1  # hours would pass
    proxy.close()
    server.push("limited", small("l"), "1")
    soon = Fault(status=429, headers={"Retry-After": "1"})
    proxy = FaultyProxy(server, lambda path, headers, n: soon if n == 0 else None)
    assert (await (await library()).get(f"{proxy.host}/limited:1", print)).layers
    proxy.close()


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"<html>"), (200, b"[1]"), (200, b"{}"), (200, b'{"manifests": 3}'), (400, b"\xff\x00<html>"), (418, b"")],
)
async def test_what_is_no_registry(server: RegistryServer, library: Opener, status: int, body: bytes) -> None:
    proxy = FaultyProxy(server, lambda path, headers, n: Fault(status=status, body=body))
    error = await refusal(library, f"{proxy.host}/x:1")
    assert error.message.isprintable()
    proxy.close()


# ---- who may ----


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[RegistryServer]:
    with registry(tmp_path / "locked", login=("bob", "secret")) as server:
        server.push("private", small("private"), "1")
        yield server


def login(home: Path, host: str, name: str, password: str) -> None:
    path = home / ".docker/config.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    entry = {"auth": base64.b64encode(f"{name}:{password}".encode()).decode()}
    path.write_text(json.dumps({"auths": {host: entry}}))


async def test_a_private_registry(locked: RegistryServer, library: Opener, tmp_path: Path) -> None:
    image = f"{locked.host}/private:1"
    error = await refusal(library, image)
    assert "no credentials were shown" in error.message
    assert f"docker login {locked.host}" in error.message
    assert "authentication required" in error.message
    login(tmp_path / "home", locked.host, "bob", "wrong")
    error = await refusal(library, image)
    assert "with the credentials that are configured" in error.message
    login(tmp_path / "home", locked.host, "bob", "secret")
    assert content(await (await library()).get(image, print), "file0") == b"private"
    (tmp_path / "own.json").write_bytes((tmp_path / "home/.docker/config.json").read_bytes())
    (tmp_path / "home/.docker/config.json").unlink()
    assert (await (await library("other", auth_file=tmp_path / "own.json")).get(image, print)).layers


async def test_credentials_stay_with_their_registry(
    locked: RegistryServer, server: RegistryServer, library: Opener, tmp_path: Path
) -> None:
    """Registries send who asks for a layer to a store elsewhere; that is to see nothing of a login."""
    image = build([Archive().add("f", BIG).bytes()])
    locked.push("moved", image, "1")
    server.push("moved", image, "1")
    store = FaultyProxy(server, lambda path, headers, n: None)

    def fault(path: str, headers: Mapping[str, str], number: int) -> Fault | None:
        if "/blobs/" not in path:
            return None
        return Fault(status=307, headers={"Location": f"http://{store.host}{path}?signed=1"})

    front = FaultyProxy(locked, fault)
    login(tmp_path / "home", front.host, "bob", "secret")
    found = await (await library()).get(f"{front.host}/moved:1", print)
    assert content(found, "f") == BIG
    assert any(shown is not None for shown in front.authorizations)
    assert len(store.requests) == 2
    assert store.authorizations == [None, None]
    front.close()
    store.close()


@pytest.mark.parametrize("known", [("bob", "secret"), None])
async def test_tokens_as_the_hub_of_docker_gives_them(
    library: Opener, tmp_path: Path, known: tuple[str, str] | None
) -> None:
    (tmp_path / "tokens").mkdir()
    tokens = TokenServer(tmp_path / "tokens", known)
    with registry(tmp_path / "guarded", tokens=tokens) as server:
        server.authorization = "Bearer " + tokens.token("repository:lib/thing:pull,push")
        server.push("lib/thing", small("a", "b", "c"), "1")
        if known is not None:
            error = await refusal(library, f"{server.host}/lib/thing:1")
            assert "incorrect username or password" in error.message
            login(tmp_path / "home", server.host, *known)
        found = await (await library()).get(f"{server.host}/lib/thing:1", print)
        assert len(found.layers) == 3
        assert set(tokens.given) == {"repository:lib/thing:pull"}
        assert len(tokens.given) == 1  # one for all that is fetched
    tokens.close()


async def test_certificates(library: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of this machine are trusted anyway, so the registry is named by what is not known as one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no address beside its loopback")
        address = probe.getsockname()[0]
    with registry(tmp_path / "tls", tls=True, address=address) as server:
        server.push("secure", small("s"), "1")
        port = server.host.rpartition(":")[2]
        named = f"{address}:{port}"
        error = await refusal(library, f"{named}/secure:1")
        assert "TLS" in error.message
        assert "images.insecure" in error.message
        assert not error.again
        assert (await (await library("lax", insecure=[named])).get(f"{named}/secure:1", print)).layers
        monkeypatch.setenv("SSL_CERT_FILE", str(server.certificate))
        assert (await (await library("strict")).get(f"{named}/secure:1", print)).layers


async def test_plain_http_is_spoken_on_loopback_alone(library: Opener, tmp_path: Path, server: RegistryServer) -> None:
    with registry(tmp_path / "tls", tls=True) as secure:
        secure.push("x", small("s"), "1")
        assert (await (await library()).get(f"{secure.host}/x:1", print)).layers


async def test_mirrors_are_asked_first(server: RegistryServer, library: Opener, tmp_path: Path) -> None:
    with registry(tmp_path / "mirror") as mirror:
        mirror.push("both", small("mirror"), "1")
        server.push("both", small("origin"), "1")
        server.push("one", small("origin alone"), "1")
        opened = await library(mirrors=[f"{server.host}={mirror.host}"])
        assert content(await opened.get(f"{server.host}/both:1", print), "file0") == b"mirror"
        assert content(await opened.get(f"{server.host}/one:1", print), "file0") == b"origin alone"
    away = await library("away", mirrors=[f"{server.host}={mirror.host}"])
    assert content(await away.get(f"{server.host}/both:1", print), "file0") == b"origin"


async def test_only_named_registries(server: RegistryServer, library: Opener) -> None:
    error = await refusal(library, f"{server.host}/x", registries=["ghcr.io"])
    assert "takes images from ghcr.io alone" in error.message


async def test_proxies_of_the_environment(
    server: RegistryServer, library: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.push("proxied", small("p"), "1")
    proxy = FaultyProxy(server, lambda path, headers, n: None)
    monkeypatch.setenv("http_proxy", f"http://{proxy.host}")
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("no_proxy", raising=False)
    # Plain HTTP is tried after TLS, and its proxy takes whole addresses.
    found = await (await library()).get(f"{server.host}/proxied:1", print)
    assert found.layers
    assert all(path.startswith("http://") for path, _ in proxy.requests)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    count = len(proxy.requests)
    assert (await (await library("direct")).get(f"{server.host}/proxied:1", print)).layers
    assert len(proxy.requests) == count
    proxy.close()


# ---- when the registry is asked ----


async def test_what_is_here_is_used_without_asking(server: RegistryServer, library: Opener) -> None:
    server.push("policy", small("old"), "1")
    proxy = FaultyProxy(server, lambda path, headers, n: None)
    image = f"{proxy.host}/policy:1"
    missing, newer = await library(), await library(pull="newer")
    rarely, never = await library(pull="newer", check_hours=1), await library(pull="never")
    with pytest.raises(ImageFailure, match="pull = never"):
        await never.get(image, print)
    first = await missing.get(image, print)
    server.push("policy", small("new"), "1")
    count = len(proxy.requests)
    for one in (missing, rarely, never):
        assert await one.get(image, print) == first
    assert len(proxy.requests) == count
    second = await newer.get(image, print)
    assert content(second, "file0") == b"new"
    count = len(proxy.requests)
    assert await newer.get(image, print) == second
    assert len(proxy.requests) > count
    count = len(proxy.requests)
    pinned = await newer.get(f"{proxy.host}/policy@{first.digest}", print)
    count = len(proxy.requests)
    assert await newer.get(f"{proxy.host}/policy@{first.digest}", print) == pinned
    assert len(proxy.requests) == count
    proxy.close()
    lines: list[str] = []
    assert await newer.get(image, lines.append) == second
    assert "the image that is here is used" in lines[-1]


# ---- sudden death ----


@pytest.mark.parametrize("victim", ["layer", "program"])
async def test_a_killed_pull_leaves_nothing_half(server: RegistryServer, library: Opener, victim: str) -> None:
    image = build([Archive().add("f", BIG).bytes(), Archive().add("g", b"small").bytes()])
    server.push("killed", image, victim)
    hold = threading.Event()
    blob = sha256(image.blobs[1])
    proxy = FaultyProxy(
        server, lambda path, headers, n: Fault(cut_after=1_000_000) if blob in path and not hold.is_set() else None
    )
    opened = await library()
    reference = f"{proxy.host}/killed:{victim}"
    waiting = opened.store.folder / "unpacking"
    task = asyncio.create_task(opened.get(reference, print))
    async with asyncio.timeout(20):
        while not list(waiting.glob("*/f")):
            await asyncio.sleep(0.01)
    [half] = list(waiting.iterdir()) if len(list(waiting.iterdir())) == 1 else [next(iter(waiting.glob("*/f"))).parent]
    child = int(half.name.partition(".")[2])
    parent = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(child if victim == "layer" else parent, signal.SIGKILL)
    with pytest.raises(ImageFailure, match="died") as caught:
        await task
    assert caught.value.again
    hold.set()
    assert opened.find(reference) is None
    async with asyncio.timeout(10):
        while Path(f"/proc/{child}").exists():
            await asyncio.sleep(0.01)
    again = await library()  # opening removes what is half
    assert list(waiting.iterdir()) == []
    found = await again.get(reference, print)
    assert (content(found, "f"), content(found, "g")) == (BIG, b"small")
    proxy.close()


async def test_after_a_power_cut_only_what_is_on_the_disk_counts(
    server: RegistryServer, library: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.push("power", small("p"), "1")
    opened = await library()
    found = await opened.get(f"{server.host}/power:1", print)
    record = opened.store.folder / "records" / f"{found.layers[0].name}.json"
    async with asyncio.timeout(20):
        while json.loads(record.read_text())["boot"] is not None:  # it is brought to the disk behind
            await asyncio.sleep(0.02)
    assert (await library()).find(f"{server.host}/power:1") == found
    loose = json.loads(record.read_text()) | {"boot": "an earlier one"}
    record.write_text(json.dumps(loose))
    again = await library()
    assert again.find(f"{server.host}/power:1") is None
    assert (await again.get(f"{server.host}/power:1", print)).layers == found.layers
    record.write_text("")
    assert (await library()).find(f"{server.host}/power:1") is None
