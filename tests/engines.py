"""A real container engine with Docker's API for the tests: Debian's podman, with storage of its own."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from container_images import debian_root
from runstead.node.engine import Engine, EngineError

# What most test machines allow; podman's own default is more than some do.
ULIMITS = ("nofile=1024:4096", "nproc=4096:4096")
SOCKET = "RUNSTEAD_TEST_ENGINE"  # names the variable with an engine's socket
_START_SECONDS = 30.0
_LEFT_OUT = ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache", "var/lib/apt", "var/lib/dpkg")


@dataclass
class RunningEngine:
    """An engine that answers on a socket."""

    folder: Path
    environment: dict[str, str]
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def socket(self) -> Path:
        return self.folder / "api.sock"

    @property
    def api(self) -> Engine:
        return Engine(str(self.socket))

    @property
    def command(self) -> list[str]:
        own = ["--root", f"{self.folder}/root", "--runroot", f"{self.folder}/run", "--storage-driver", "overlay"]
        return ["podman", *own]

    def podman(self, *words: str, given: bytes | None = None) -> str:
        done = subprocess.run(
            [*self.command, *words], env=self.environment, input=given, capture_output=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def load(self, archive: bytes, name: str, *changes: str) -> None:
        """Make an image of an archive of its files."""
        words = [word for change in changes for word in ("--change", change)]
        self.podman("import", "-q", *words, "-", name, given=archive)

    def load_debian(self, name: str) -> None:
        """Make an image of the small Debian with Python, without what nobody runs."""
        left_out = [f"--exclude=./{path}" for path in _LEFT_OUT]
        with subprocess.Popen(
            ["tar", "-C", debian_root(), *left_out, "-cf", "-", "."], stdout=subprocess.PIPE
        ) as archive:
            done = subprocess.run(
                [*self.command, "import", "-q", "-", name],
                env=self.environment,
                stdin=archive.stdout,
                capture_output=True,
                timeout=120,
                check=False,
            )
        assert (archive.returncode, done.returncode) == (0, 0), done.stderr.decode()

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.command, "system", "service", "--time=0", f"unix://{self.socket}"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,  # its monitors leave files where it was started
                start_new_session=True,
            )
        until = time.monotonic() + _START_SECONDS
        while True:
            try:
                self.api.call("GET", "/version")
                return
            except (OSError, EngineError):
                assert self.process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() < until, (self.folder / "log").read_text()
                time.sleep(0.05)

    def stop(self) -> None:
        """Stop the engine; containers go on."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def containers(self) -> Sequence[str]:
        return [row["Names"][0].lstrip("/") for row in self.api.call("GET", "/containers/json", query={"all": "true"})]


@contextmanager
def podman(*, insecure: Sequence[str] = ()) -> Iterator[RunningEngine]:
    """Run an engine; skips where there is none. `insecure` registries may speak plain HTTP."""
    for program in ("podman", "runc", "conmon"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if os.geteuid() != 0:
        pytest.skip("podman with storage of its own needs root here")
    folder = Path(tempfile.mkdtemp(prefix="engine-"))  # podman wants short paths
    # Locks and state of its own: an engine that starts takes those of all others on the machine for its own old ones.
    lines = ["[engine]", 'runtime = "runc"', 'cgroup_manager = "cgroupfs"', 'lock_type = "file"']
    (folder / "containers.conf").write_text("\n".join([*lines, f'tmp_dir = "{folder}/tmp"', ""]))
    registries = [f'[[registry]]\nlocation = "{host}"\ninsecure = true\n' for host in insecure]
    (folder / "registries.conf").write_text("\n".join(registries))
    own = {
        "CONTAINERS_CONF": f"{folder}/containers.conf",
        "CONTAINERS_REGISTRIES_CONF": f"{folder}/registries.conf",
        "REGISTRY_AUTH_FILE": f"{folder}/auth.json",
    }
    engine = RunningEngine(folder, {**os.environ, **own})
    engine.start()
    try:
        yield engine
    finally:
        engine.stop()
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            engine.podman("rm", "--all", "--force", "--time", "0")
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for mount in reversed([mount for mount in mounts if mount.startswith(f"{folder}/")]):
            subprocess.run(["umount", "-l", mount], check=False)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def named(engine: "RunningEngine") -> Iterator[None]:
    """Tell of this engine in the environment; another that was told of before is, again, afterwards."""
    before = os.environ.get(SOCKET)
    os.environ[SOCKET] = str(engine.socket)
    try:
        yield
    finally:
        if before is None:
            del os.environ[SOCKET]
        else:
            os.environ[SOCKET] = before


def settings() -> dict[str, str]:
    """Return the settings of a server that uses the engine which the environment names."""
    return {
        "RUNSTEAD_EXECUTOR_KIND": "docker",
        "RUNSTEAD_EXECUTOR_NETWORK": "none",
        "RUNSTEAD_DOCKER_SOCKET": os.environ[SOCKET],
        "RUNSTEAD_DOCKER_ULIMITS": ",".join(ULIMITS),
    }
