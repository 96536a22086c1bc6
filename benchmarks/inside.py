"""The inside of running attempts: how soon a program runs in one, how fast files move, what compartments cost.

    .venv/bin/python benchmarks/inside.py [--quick] [programs files ports compartments]

Needs root. The executor alone, without a server around it: `process` with full isolation. Beside it, in the same run,
nsenter into the same attempt, and crun exec and podman exec into a container of busybox where they are installed.
Medians and 95th percentiles; latencies in ms.
"""

import asyncio
import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from containers import IMAGE, make_archive, podman, runtime

from runstead.executors.inside import Inside
from runstead.executors.native import NativeSettings
from runstead.executors.process import ProcessExecutor
from runstead.model.executions import Command, CompartmentLimits
from runstead.model.ids import new_id
from runstead.model.launches import Handle, Launch

QUICK = "--quick" in sys.argv
TRUE = Command(("true",))


def say(what: str, value: str, target: str = "", peer: str = "") -> None:
    print(f"| {what} | {value} | {target} | {peer} |", flush=True)


def both(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    return f"{median(ordered) * 1000:.2f} ms, 95 %: {ordered[int(len(ordered) * 0.95)] * 1000:.2f} ms"


@contextlib.asynccontextmanager
async def attempt(memory: int = 8 << 30) -> AsyncIterator[tuple[ProcessExecutor, Handle, Inside]]:
    with tempfile.TemporaryDirectory(prefix="runstead-bench-") as folder:
        executor = ProcessExecutor(Path(folder), NativeSettings(pids_limit=0), lambda _kind, _job_id: None)
        await executor.open()
        launch = Launch(
            job_id=new_id(datetime.now(UTC)),
            attempt=1,
            namespace="bench",
            image="",
            argv=(),
            environment={},
            cpu_millicores=0,
            memory_bytes=memory,
            disk_bytes=None,
            gpu_ids=(),
            timeout_seconds=3600,
            log_path=Path(folder, "log"),
            log_not_before=datetime.fromtimestamp(0, UTC),
            preamble=(),
        )
        handle = await executor.start(launch)
        try:
            yield executor, handle, await executor.inside(handle)
        finally:
            await executor.remove(handle)
            await executor.close()


async def run(inside: Inside, command: Command = TRUE) -> None:
    execution = await inside.execute(command)
    while await execution.read() is not None:
        pass
    await execution.wait()
    await execution.close()


async def repeated(call: Callable[[], Awaitable[object]], count: int) -> list[float]:
    found = []
    for _ in range(count):
        began = time.perf_counter()
        await call()
        found.append(time.perf_counter() - began)
    return found


# ---- programs ----


async def programs() -> None:
    count = 100 if QUICK else 500
    async with attempt() as (executor, handle, inside):
        first = (await repeated(lambda: run(inside), 1))[0]
        seen = await repeated(lambda: run(inside), count)
        say("`true`, from execute to its end", both(seen), "≤ 5 ms", f"the first in an attempt: {first * 1000:.1f} ms")

        async def background() -> None:
            await inside.spawn(TRUE)

        say("`true` in the background, until it is started", both(await repeated(background, count)))
        began = time.perf_counter()
        await asyncio.gather(*(run(inside) for _ in range(200)))
        say("200 programs at once", f"{200 / (time.perf_counter() - began):.0f}/s")

        async def some() -> None:
            for _ in range(count // 4):
                await run(inside)

        began = time.perf_counter()
        await asyncio.gather(*(some() for _ in range(4)))
        say("programs one after the other, 4 at a time", f"{count // 4 * 4 / (time.perf_counter() - began):.0f}/s")
        name = f"{handle.data['job_id']}-{handle.data['attempt']}"
        facts = json.loads((executor._data_dir / "node/attempts" / name / "attempt.json").read_text())
        first_process = Path(f"/proc/{facts['supervisor']}/task/{facts['supervisor']}/children").read_text().split()[0]
        peer("nsenter -a into the same attempt", ["nsenter", "-t", first_process, "-a", "true"])
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder, "image.tar")
        make_archive(archive)
        with crun_container(archive) as command:
            peer("crun exec", command)
        with podman_container(archive) as command:
            peer("podman exec", command)


def peer(what: str, command: list[str] | None) -> None:
    if command is None or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        say(what, "not here")
        return
    seen = []
    for _ in range(10 if QUICK else 30):
        began = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        seen.append(time.perf_counter() - began)
    say(what, both(seen))


@contextlib.contextmanager
def crun_container(archive: Path) -> Generator[list[str] | None]:
    with runtime("crun", archive) as make:
        if make is None:
            yield None
            return
        command = make(0)
        folder, name = command[command.index("-b") + 1], command[-1]
        config = Path(folder, "config.json")
        changed = json.loads(config.read_text())
        changed["process"]["args"] = ["sleep", "600"]
        config.write_text(json.dumps(changed))
        at = command.index("crun")
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
            found = [*command[:at], "crun", "exec", name, "true"]
            until = time.monotonic() + 5
            while time.monotonic() < until and subprocess.run(found, capture_output=True, check=False).returncode:
                time.sleep(0.05)
            yield found
            subprocess.run([*command[:at], "crun", "delete", "-f", name], capture_output=True, check=False)
            running.wait()


@contextlib.contextmanager
def podman_container(archive: Path) -> Generator[list[str] | None]:
    with podman(archive) as command:
        if command is None:
            yield None
            return
        name = f"bench-{os.getpid()}"
        at, image = command.index("run"), command.index(IMAGE)
        start = [*command[: at + 1], "-d", "--name", name, *command[at + 1 : image], IMAGE, "sleep", "600"]
        subprocess.run(start, capture_output=True, check=False)
        yield [*command[:at], "exec", name, "true"]
        subprocess.run([*command[:at], "rm", "-f", name], capture_output=True, check=False)


# ---- files ----


async def files() -> None:
    size, step = (128 << 20 if QUICK else 512 << 20), 1 << 20
    block = os.urandom(step)
    async with attempt() as (_executor, _handle, inside):

        async def ranges(write: bool) -> float:
            left = iter(range(0, size, step))

            async def some() -> None:
                for offset in left:
                    file = await inside.open_file("big", write=write)
                    if write:
                        await file.write(offset, block)
                    else:
                        await file.read(offset, step)
                    await file.close()

            began = time.perf_counter()
            await asyncio.gather(*(some() for _ in range(8)))
            return size / (time.perf_counter() - began) / 1e6

        say("a file written by ranges of 1 MiB, each opened by itself", f"{await ranges(True):.0f} MB/s", "≥ 500 MB/s")
        say("the same file read", f"{await ranges(False):.0f} MB/s", "≥ 500 MB/s")
        say("stat of a file", both(await repeated(lambda: inside.stat("big"), 500)))


# ---- ports ----


async def ports() -> None:
    server = (
        "import socket\ns = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(100)\n"
        "print(s.getsockname()[1], flush=True)\nwhile True: s.accept()[0].close()"
    )
    async with attempt() as (_executor, _handle, inside):
        execution = await inside.execute(Command(("python3", "-c", server)))
        said = await execution.read()
        assert said is not None
        port = int(said.data)

        async def connect() -> None:
            (await inside.connect(port)).close()

        say("a connection to a port on loopback inside", both(await repeated(connect, 500)))
        await execution.close()


# ---- compartments ----


async def compartments() -> None:
    count = 100 if QUICK else 1000
    async with attempt(16 << 30) as (_executor, _handle, inside):
        ids = [secrets.token_hex(8) for _ in range(count)]
        began = time.perf_counter()
        await inside.make_compartments(ids, CompartmentLimits())
        made = time.perf_counter()
        ready = asyncio.Semaphore(16)
        command = Command(("true",), environment={"PATH": os.defpath})

        async def one(compartment_id: str) -> None:
            async with ready:
                await run(await inside.compartment(compartment_id), command)

        await asyncio.gather(*(one(compartment_id) for compartment_id in ids))
        ran = time.perf_counter()
        await inside.remove_compartments(ids)
        removed = time.perf_counter()
        parts = f"made {made - began:.1f} s, one program each {ran - made:.1f} s, removed {removed - ran:.1f} s"
        say(f"{count} compartments", f"{removed - began:.1f} s", "1000: ≤ 10 s", parts)


def main() -> None:
    parts = {"programs": programs, "files": files, "ports": ports, "compartments": compartments}
    for name in [word for word in sys.argv[1:] if not word.startswith("-")] or list(parts):
        asyncio.run(parts[name]())


if __name__ == "__main__":
    main()
