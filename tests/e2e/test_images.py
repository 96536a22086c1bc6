"""Jobs in images of a real registry, through the real client: pulled while the job waits, told of, and kept."""

import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clients import VERSIONS, Client, Server, eventually, make_client
from registry import (
    Archive,
    Fault,
    FaultyProxy,
    RegistryServer,
    build,
    busybox_archive,
    python_archive,
    registry,
    sha256,
)
from runstead.executors.oci import problem

pytestmark = pytest.mark.skipif(problem() is not None, reason=f"containers are not possible here: {problem()}")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    folder = tmp_path_factory.mktemp("registry")
    with registry(folder) as server:
        base = busybox_archive()
        config = {"Env": ["PATH=/usr/local/bin:/bin", "FROM_IMAGE=yes"], "WorkingDir": "/work", "Entrypoint": ["false"]}
        server.push("busybox", build([base], config=config), "1")
        server.push("python", build([base, python_archive(folder)], compression="zstd", config=config), "3")
        yield server


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server") / "data"
    started = Server(folder, ("--stop-jobs-at-exit",), {"RUNSTEAD_EXECUTOR_KIND": "oci"}).start()
    yield started
    started.stop()


@pytest.fixture
def hf(machine: Server, tmp_path: Path) -> Client:
    return make_client(VERSIONS[0], machine, tmp_path)


class Gate:
    """A registry that answers for layers only when it is opened."""

    def __init__(self, behind: RegistryServer) -> None:
        self.opened = threading.Event()
        self.proxy = FaultyProxy(behind, self._fault)
        self.host = self.proxy.host

    def _fault(self, path: str, headers: Any, number: int) -> Fault | None:
        asked = sum("/blobs/" in one for one, _ in self.proxy.requests)
        return Fault(hold=self.opened) if "/blobs/" in path and asked else None  # the first is the configuration

    def __enter__(self) -> "Gate":
        return self

    def __exit__(self, *ignored: object) -> None:
        self.opened.set()
        self.proxy.close()


def submit(client: Client, image: str, *command: str) -> str:
    code = f"from huggingface_hub import run_job; out(run_job(image={image!r}, command={list(command)!r}).id)"
    return str(client.python(code))


def status(client: Client, job_id: str) -> tuple[str, str]:
    code = f"from huggingface_hub import inspect_job; s = inspect_job(job_id={job_id!r}).status\n"
    stage, message = client.python(code + "out([getattr(s.stage, 'value', s.stage), s.message])")
    return stage, message or ""


def ended(client: Client, job_id: str) -> tuple[str, str]:
    return eventually(
        lambda: found if (found := status(client, job_id))[0] in ("COMPLETED", "ERROR", "CANCELED") else None, 40
    )


def test_a_job_runs_in_its_image(images: RegistryServer, hf: Client) -> None:
    words = "import os, ssl, sys; print(sys.version_info[0], os.environ['FROM_IMAGE'], os.getcwd())"
    done = hf.hf("jobs", "run", f"{images.host}/python:3", "python", "-c", words)
    assert "3 yes /work" in done.stdout
    name = f"{images.host}/python:3"
    assert f"runstead: pulling {name}" in done.stdout
    assert f"runstead: pulled {name}" in done.stdout
    again = hf.hf("jobs", "run", name, "python", "-c", words)
    assert "3 yes /work" in again.stdout
    assert "pull" not in again.stdout


def test_uv_in_an_image(images: RegistryServer, hf: Client, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys; print('in', sys.prefix)")
    done = hf.hf("jobs", "uv", "run", "--image", f"{images.host}/python:3", str(script))
    assert "in /" in done.stdout


def test_progress_and_cancelling_while_it_is_pulled(images: RegistryServer, hf: Client, machine: Server) -> None:
    with Gate(images) as gate:
        images.push("progress", build([busybox_archive(), Archive().add("progress", b"1").bytes()]), "1")
        name = f"{gate.host}/progress:1"
        job_id = submit(hf, name, "echo", "hello")
        other = submit(hf, name, "echo", "hello")
        stage, message = eventually(lambda: found if "%" in (found := status(hf, job_id))[1] else None, 20)
        assert (stage, message.split(" 0 %")[0]) == ("SCHEDULING", f"pulling {name}")
        assert message.endswith(" MB")
        hf.hf("jobs", "cancel", other)
        assert ended(hf, other)[0] == "CANCELED"
        gate.opened.set()
        assert ended(hf, job_id)[0] == "COMPLETED"
        assert f"runstead: pulled {name}" in hf.hf("jobs", "logs", job_id).stdout
        blobs = [path for path, _ in gate.proxy.requests if "/blobs/" in path]
        assert len(blobs) == len(set(blobs))  # one pull for both


def test_what_cannot_be_had_is_said_with_the_registry_s_reason(images: RegistryServer, hf: Client) -> None:
    done = hf.hf("jobs", "run", f"{images.host}/busybox:nope", "true", check=False)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert "image: the attempt could not be started" in said
    assert "manifest unknown" in said
    assert "check its name and tag" in said


def test_a_server_that_is_killed_during_a_pull_pulls_anew(images: RegistryServer, hf: Client, machine: Server) -> None:
    with Gate(images) as gate:
        images.push("killed", build([busybox_archive(), Archive().add("killed", b"1").bytes()]), "1")
        job_id = submit(hf, f"{gate.host}/killed:1", "echo", "hello")
        assert eventually(lambda: "%" in status(hf, job_id)[1], 20)
        machine.kill()
        programs = ["pgrep", "-f", "runstead.images.program"]
        mine = str(machine.data_dir)
        assert eventually(
            lambda: (
                not any(
                    mine in Path(f"/proc/{pid}/environ").read_text(errors="replace")
                    for pid in subprocess.run(programs, capture_output=True, text=True).stdout.split()
                    if Path(f"/proc/{pid}").exists()
                )
            )
        )
        gate.opened.set()
        machine.start()
        assert ended(hf, job_id)[0] == "COMPLETED"
        assert list((machine.data_dir / "images" / "unpacking").iterdir()) == []


def test_images_are_listed_removed_and_loaded_beside_a_server(
    images: RegistryServer, hf: Client, machine: Server, tmp_path: Path
) -> None:
    images.push("alone", build([busybox_archive(), Archive().add("alone").bytes()]), "1")
    name = f"{images.host}/alone:1"
    machine.run("image", "pull", name)
    job_id = submit(hf, name, "sleep", "600")
    assert eventually(lambda: status(hf, job_id)[0] == "RUNNING", 20)
    assert name in machine.run("image", "list").stdout
    refused = machine.run("image", "rm", name, check=False)
    assert refused.returncode == 1
    assert "jobs use this image" in refused.stderr
    machine.run("image", "prune", "--all")
    assert status(hf, job_id)[0] == "RUNNING"
    hf.hf("jobs", "cancel", job_id)
    assert eventually(lambda: machine.run("image", "rm", name, check=False).returncode == 0, 20)
    assert name not in machine.run("image", "list", "--json").stdout
    layout = tmp_path / "layout"
    built = build([busybox_archive(), Archive().add("marker", b"loaded").bytes()], compression="")
    (layout / "blobs/sha256").mkdir(parents=True)
    for blob in (*built.blobs, built.manifest):
        (layout / "blobs/sha256" / sha256(blob).removeprefix("sha256:")).write_bytes(blob)
    entry = f'{{"digest": "{built.digest}", "mediaType": "{built.media_type}", "size": {len(built.manifest)}}}'
    (layout / "index.json").write_text(f'{{"schemaVersion": 2, "manifests": [{entry}]}}')
    machine.run("image", "load", str(layout), "--name", "never.invalid/loaded:1")
    done = hf.hf("jobs", "run", "never.invalid/loaded:1", "/bin/cat", "/marker")
    assert "loaded" in done.stdout
