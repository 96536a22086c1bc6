"""Measures pulling and unpacking an image from a registry on loopback, with `podman pull` as the peer.

    python benchmarks/images.py [--rounds 3] [--compression gzip]

The image: this machine's Python with its library, and some thousand small files of the machine, in three layers; the
same as one layer. Each round pulls into an empty folder. Figures are seconds until the image can be used, and seconds
of processor time of the programs on the puller's side. Compare within a run: what else the machine does counts.
"""

import argparse
import asyncio
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import registry as registries  # pyright: ignore[reportMissingImports]  # noqa: I001

from runstead.images.library import ImageLibrary
from runstead.kit.settings import ImageSettings

SMALL_FILES = ("/usr/include", "/usr/share/perl", "/usr/share/zoneinfo", "/usr/share/doc")


def small_files() -> bytes:
    there = [name.lstrip("/") for name in SMALL_FILES if Path(name).is_dir()]
    command = ["tar", "--numeric-owner", "-C", "/", "-cf", "-", *there]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def print_nothing(line: str) -> None:
    """What is told about a pull is not measured."""
    del line


async def own(folder: Path, reference: str, at_once: int = 1) -> None:
    library = ImageLibrary(folder, ImageSettings())
    await library.open()
    await asyncio.gather(*(library.get(reference, print_nothing) for _ in range(at_once)))
    await library.close()


def podman(folder: Path, reference: str) -> None:
    command = ["podman", "--root", str(folder / "root"), "--runroot", str(folder / "run"), "--storage-driver=overlay"]
    subprocess.run([*command, "pull", "-q", "--tls-verify=false", reference], check=True, stdout=subprocess.DEVNULL)


def processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measure(where: Path, pull: Callable[[Path], None]) -> tuple[float, float]:
    folder = Path(tempfile.mkdtemp(dir=where))
    os.sync()
    before, began = processor_seconds(), time.perf_counter()
    pull(folder)
    took = time.perf_counter() - began
    used = processor_seconds() - before
    # What is brought to the disk behind must not slow the next one down.
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and any(
        b'"boot": null' not in one.read_bytes() for one in folder.glob("records/*")
    ):
        time.sleep(0.1)
    subprocess.run(["umount", folder / "root" / "overlay"], stderr=subprocess.DEVNULL)
    shutil.rmtree(folder, ignore_errors=True)
    return took, used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compression", default="gzip", choices=["gzip", "zstd"])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="runstead-bench-", dir="/var/tmp") as folder:
        where = Path(folder)
        layers = [registries.busybox_archive(), registries.python_archive(where), small_files()]
        size = sum(len(layer) for layer in layers)
        with registries.registry(where / "registry") as server:
            built = registries.build(layers, compression=asked.compression)
            server.push("bench/three", built, "latest")
            archive = where / "all"
            archive.mkdir()
            for layer in layers:
                subprocess.run(["tar", "-C", archive, "-xf", "-"], input=layer, check=True)
            server.push(
                "bench/one", registries.build([registries.archive_of(archive)], compression=asked.compression), "latest"
            )
            files = sum(len(names) for _, _, names in os.walk(archive))
            shutil.rmtree(archive)
            print(f"{size / 1e6:.0f} MB and {files:,} files unpacked, {asked.compression}, {os.cpu_count()} processors")
            print(f"{'':32}{'s, median (all)':>32}{'processor s':>14}")
            for name, shape in (("bench/three", "three layers"), ("bench/one", "one layer")):
                reference = f"{server.host}/{name}:latest"
                pulls: dict[str, Callable[[Path], None]] = {
                    "runstead": lambda at, of=reference: asyncio.run(own(at, of)),
                }
                if shutil.which("podman"):
                    pulls["podman pull"] = lambda at, of=reference: podman(at, of)
                pulls["runstead, ten jobs at once"] = lambda at, of=reference: asyncio.run(own(at, of, 10))
                found: dict[str, list[tuple[float, float]]] = {who: [] for who in pulls}
                for _ in range(asked.rounds):  # in turn, so that what else happens hits all alike
                    for who, pull in pulls.items():
                        found[who].append(measure(where, pull))
                for who, times in found.items():
                    took = [one for one, _ in times]
                    every = ", ".join(f"{one:.1f}" for one in took)
                    used = median(one for _, one in times)
                    print(f"{f'{shape}: {who}':44}{median(took):6.2f} ({every}){used:12.2f}")


if __name__ == "__main__":
    main()
