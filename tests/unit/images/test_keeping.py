"""Images that are used stay, others go; several processes at once, and archives instead of registries."""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from registry import Archive, RegistryServer, build
from runstead.images.collecting import prune, remove
from runstead.images.image import Image
from runstead.images.library import ImageLibrary
from runstead.kit.clock import SystemClock
from runstead.model.errors import Conflict, ImageFailure, NotFound
from runstead.services.image_sweeper import ImageSweeper

from .conftest import Opener, small

DAY = 86_400.0


def used(library: ImageLibrary, image: Image, days_ago: float) -> None:
    then = time.time() - days_ago * DAY
    os.utime(library.store.folder / "images" / f"{image.digest.replace(':', '-')}.json", (then, then))


async def test_what_an_attempt_holds_stays(server: RegistryServer, library: Opener) -> None:
    server.push("held", small("held"), "1")
    opened = await library()
    image = await opened.get(f"{server.host}/held:1", print)
    opened.hold(image, "job-1")
    opened.hold(image, "job-1")
    opened.hold(image, "job/2 with ../ a strange name")
    used(opened, image, 100)
    assert prune(opened.store, 1, 0).images == ()
    with pytest.raises(Conflict, match="job-1"):
        remove(opened.store, f"{server.host}/held:1")
    again = await library()  # another server process finds the holds
    assert sorted(again.holders()) == ["job-1", "job/2 with ../ a strange name"]
    for name in again.holders():
        again.release(name)
    again.release("never there")
    used(again, image, 100)
    assert prune(again.store, 1, None).images == (f"{server.host}/held:1",)
    assert again.store.layers() == []
    assert again.find(f"{server.host}/held:1") is None
    with pytest.raises(ImageFailure, match="removed just now") as caught:
        again.hold(image, "too late")
    assert caught.value.again


async def test_a_hold_can_be_taken_for_another_image(server: RegistryServer, library: Opener) -> None:
    """As for containers made ahead, whose names come back."""
    server.push("first", small("one"), "1")
    server.push("second", small("two"), "1")
    opened = await library()
    first, second = [await opened.get(f"{server.host}/{name}:1", print) for name in ("first", "second")]
    opened.hold(first, "job-1")
    opened.hold(second, "job-1")
    assert [digest for _, digest, _ in opened.store.holds()] == [second.digest]
    assert remove(opened.store, first.reference).images == (first.reference,)
    assert not first.layers[0].exists()
    assert second.layers[0].exists()


async def test_an_image_that_went_and_came_back_can_be_held(server: RegistryServer, library: Opener) -> None:
    server.push("back", small("back"), "1")
    opened = await library()
    image = await opened.get(f"{server.host}/back:1", print)
    opened.hold(image, "job-1")
    opened.release("job-1")
    remove(opened.store, image.reference)
    image = await opened.get(f"{server.host}/back:1", print)
    opened.hold(image, "job-2")
    opened.hold(image, "job-3")
    assert sorted(opened.holders()) == ["job-2", "job-3"]
    assert {digest for _, digest, _ in opened.store.holds()} == {image.digest}
    with pytest.raises(Conflict, match="job-2"):
        remove(opened.store, image.reference)


async def test_what_a_power_cut_leaves_is_not_taken_for_a_hold(server: RegistryServer, library: Opener) -> None:
    server.push("power", small("power"), "1")
    opened = await library()
    image = await opened.get(f"{server.host}/power:1", print)
    opened.hold(image, "job-1")
    [common] = (opened.store.folder / "holds").glob("*.of")
    common.write_bytes(b"")
    again = await library()
    again.hold(image, "job-2")
    assert [(name, digest) for name, digest, _ in again.store.holds()] == [("job-2", image.digest)]


async def test_images_are_held_where_files_cannot_have_two_names(
    server: RegistryServer, library: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.push("single", small("single"), "1")
    opened = await library()
    image = await opened.get(f"{server.host}/single:1", print)

    def refused(*_: object) -> None:
        raise OSError(31, "Too many links")

    monkeypatch.setattr(os, "link", refused)
    opened.hold(image, "job-1")
    monkeypatch.undo()
    opened.hold(image, "job-2")
    assert sorted(opened.holders()) == ["job-1", "job-2"]
    for name in opened.holders():
        opened.release(name)
    assert opened.holders() == []


async def test_shared_layers_go_with_their_last_image(server: RegistryServer, library: Opener) -> None:
    base = Archive().add("base", b"b" * 1000).bytes()
    server.push("last/a", build([base]), "1")
    server.push("last/b", build([base, Archive().add("own", b"o" * 500).bytes()]), "1")
    opened = await library()
    a, b = [await opened.get(f"{server.host}/last/{name}:1", print) for name in "ab"]
    assert remove(opened.store, f"{server.host}/last/a:1").bytes == 0
    assert b.layers[0].is_dir()
    assert remove(opened.store, b.digest).bytes == 1500
    assert not any(layer.exists() for layer in (*a.layers, *b.layers))
    with pytest.raises(NotFound, match="runstead image list"):
        remove(opened.store, b.digest)


async def test_a_name_goes_and_others_stay(server: RegistryServer, library: Opener) -> None:
    server.push("names", small("x"), "1", "2")
    opened = await library()
    image = await opened.get(f"{server.host}/names:1", print)
    assert (await opened.get(f"{server.host}/names:2", print)).digest == image.digest
    opened.hold(image, "job")
    remove(opened.store, f"{server.host}/names:1")
    assert opened.find(f"{server.host}/names:1") is None
    assert opened.find(f"{server.host}/names:2") is not None
    [stored] = opened.store.images()
    assert stored.holders == ("job",)


async def test_the_longest_unused_go_first_until_there_is_room(server: RegistryServer, library: Opener) -> None:
    opened = await library()
    images: list[Image] = []
    for number in range(4):
        server.push(f"room/{number}", build([Archive().add("f", bytes([number]) * 1000).bytes()]), "1")
        images.append(await opened.get(f"{server.host}/room/{number}:1", print))
    for number, days in enumerate((3, 9, 1, 5)):
        used(opened, images[number], days)
    opened.hold(images[1], "job")
    used(opened, images[1], 9)
    preview = prune(opened.store, None, 2000, dry_run=True)
    assert len(opened.store.layers()) == 4
    assert prune(opened.store, None, 2000) == preview
    assert [opened.find(image.reference) is not None for image in images] == [False, True, True, False]
    assert preview.bytes == 2000
    await opened.get(images[2].reference, print)  # used now
    assert prune(opened.store, 0.5 * DAY, None).images == ()
    assert prune(opened.store, 0, None).images == ()  # somebody may be about to hold it
    used(opened, images[2], 1)
    assert prune(opened.store, 0, None).images == (images[2].reference,)


async def test_the_duty_does_so_by_itself(server: RegistryServer, library: Opener) -> None:
    server.push("duty", small("x"), "1", "2")
    opened = await library()
    image = await opened.get(f"{server.host}/duty:1", print)
    await ImageSweeper(opened.store, SystemClock(), 30, 10**9).run_once()
    assert opened.find(image.reference) == image
    used(opened, image, 31)
    await ImageSweeper(opened.store, SystemClock(), 0, 10**9).run_once()
    assert opened.find(image.reference) == image
    await ImageSweeper(opened.store, SystemClock(), 30, 10**9).run_once()
    assert opened.find(image.reference) is None
    assert list((opened.store.folder / "trash").iterdir()) == []


async def test_what_nobody_unpacks_any_more_is_removed_and_what_somebody_does_stays(
    server: RegistryServer, library: Opener
) -> None:
    opened = await library()
    (opened.store.folder / "unpacking" / f"{'a' * 64}.1234").mkdir()
    with opened.store.unpacking("b" * 64) as path:
        assert path is not None
        prune((await library()).store, None, None)
        assert list((opened.store.folder / "unpacking").iterdir()) == [path]
    assert list((opened.store.folder / "unpacking").iterdir()) == []


async def test_pulls_and_removals_at_once_are_never_at_odds(server: RegistryServer, library: Opener) -> None:
    """Whoever holds an image has all of it, however fast others remove."""
    base = Archive().add("base", b"b").bytes()
    for name in "ab":
        server.push(f"odds/{name}", build([base, Archive().add(name, b"x").bytes()]), "1")
    opened, other = await library(), await library()
    stop = asyncio.Event()

    async def remover() -> None:
        while not stop.is_set():
            await asyncio.to_thread(prune, other.store, 0, None)
            await asyncio.sleep(0.01)

    removing = asyncio.create_task(remover())
    held = 0
    for number in range(12):
        name = f"job-{number}"
        image = await opened.get(f"{server.host}/odds/{'ab'[number % 2]}:1", lambda line: None)
        opened.hold(image, name)
        used(opened, image, 1)
        held += 1
        await asyncio.sleep(0.02)
        assert all(list(layer.iterdir()) for layer in image.layers)
        opened.release(name)
    stop.set()
    await removing
    assert held == 12


async def test_what_a_pull_counts_on_is_not_removed(server: RegistryServer, library: Opener) -> None:
    opened = await library()
    server.push("count", small("x"), "1")
    image = await opened.get(f"{server.host}/count:1", print)
    with opened.store.pulling([image.layers[0].name]):
        remove(opened.store, image.reference)
        assert image.layers[0].is_dir()
    prune(opened.store, 0, 0)
    assert not image.layers[0].exists()


async def test_a_holder_that_is_killed_goes_on_holding(server: RegistryServer, library: Opener) -> None:
    server.push("durable", small("x"), "1")
    opened = await library()
    image = await opened.get(f"{server.host}/durable:1", print)
    code = (
        "import os, sys; from pathlib import Path; from runstead.images.store import ImageStore\n"
        "store = ImageStore(Path(sys.argv[1])); store.hold(store.find(sys.argv[2]), 'job'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(opened.store.folder), image.reference])
    assert opened.holders() == ["job"]
    used(opened, image, 1)
    prune(opened.store, 0, 0)
    assert image.layers[0].is_dir()


# ---- archives ----


def exported(server: RegistryServer, name: str, to: str) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("needs skopeo")
    command = ["skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{server.host}/{name}", to]
    subprocess.run(command, check=True)


@pytest.mark.parametrize("form", ["oci-archive", "docker-archive", "oci", "oci-archive.gz"])
async def test_images_from_archives(server: RegistryServer, library: Opener, tmp_path: Path, form: str) -> None:
    image = small("one", "two", config={"Env": ["A=1"]}, kind="docker" if "docker" in form else "oci")
    server.push("exported", image, "1")
    path = tmp_path / "archive"
    exported(server, "exported:1", f"{form.removesuffix('.gz')}:{path}:example.org/team/thing:7")
    if form.endswith(".gz"):
        subprocess.run(["gzip", "-1", str(path)], check=True)
        path = path.with_suffix(".gz")
    opened = await library(pull="never")
    lines: list[str] = []
    [digest] = await opened.load(path, lines.append)
    found = opened.find("example.org/team/thing:7")
    assert found is not None
    assert found.digest == digest
    assert found.config.environment == ("A=1",)
    assert [path.read_bytes() for layer in found.layers for path in layer.iterdir()] == [b"one", b"two"]
    assert lines[-1] == "loaded example.org/team/thing:7"
    assert await opened.get("example.org/team/thing:7", print) == found
    await opened.load(path, print, name="other:1")
    assert opened.find("other:1") is not None
    # The same layers whoever brings them.
    assert {layer.name for layer in found.layers} == set(opened.store.layers())


async def test_what_is_no_archive_of_images(library: Opener, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("images can be unpacked only as root")
    opened = await library()
    texts = {
        "noise": os.urandom(3000),
        "empty": b"",
        "tar": Archive().add("x", b"y").bytes(),
        "manifest": Archive().add("manifest.json", b"[]").bytes(),
        "index": Archive().add("index.json", b'{"manifests": [{"digest": "../../etc/passwd"}]}').bytes(),
        "escape": Archive().add("index.json", b'{"manifests": [{"digest": "sha256:../x"}]}').bytes(),
    }
    for name, data in texts.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageFailure):
            await opened.load(tmp_path / name, print, name="x:1")
    with pytest.raises(ImageFailure, match="cannot be read"):
        await opened.load(tmp_path / "nothing", print)
    (tmp_path / "folder").mkdir()
    with pytest.raises(ImageFailure, match="neither"):
        await opened.load(tmp_path / "folder", print)


async def test_an_engine_that_is_not_there(library: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = await library()
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(ImageFailure, match="there is no docker"):
        await opened.load(None, print, engine="docker", engine_name="x", name="x")
    program = tmp_path / "bin" / "docker"
    program.write_text("#!/bin/sh\necho 'Error response: No such image: x' >&2; exit 1\n")
    program.chmod(0o755)
    with pytest.raises(ImageFailure, match="No such image: x"):
        await opened.load(None, print, engine="docker", engine_name="x", name="x")
    assert [path.name for path in opened.store.folder.iterdir() if path.is_file()] == ["lock"]


async def test_an_image_of_an_engine(
    server: RegistryServer, library: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the engine's `save` writes, from a program that stands for it."""
    server.push("engine", small("of an engine"), "1")
    exported(server, "engine:1", f"docker-archive:{tmp_path}/saved:engine:1")
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n[ "$*" = "save -- mine:1" ] && exec cat {tmp_path}/saved\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    opened = await library()
    await opened.load(None, print, engine="docker", engine_name="mine:1", name="mine:1")
    found = opened.find("mine:1")
    assert found is not None
    assert (found.layers[0] / "file0").read_bytes() == b"of an engine"
