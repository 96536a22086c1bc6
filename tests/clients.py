"""A real server in a process of its own, and the real clients, each version in an environment of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from runstead.kit.settings import PASSED_BY_DEFAULT
from runstead.volumes.fuse import problem as mount_problem

ROOT = Path(__file__).resolve().parents[1]
CLIENTS = ROOT / ".venvs"
VERSIONS = ("2.4.0", "1.28.0", "1.9.0")


@dataclass
class Server:
    """`runstead serve` over one data directory; it may be killed and started again."""

    data_dir: Path
    flags: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    program: tuple[str, ...] = (sys.executable, "-m", "runstead.cli")
    url: str = ""
    token: str = ""
    owner: str = ""
    port: int = 0
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def log(self) -> Path:
        return self.data_dir.with_name(self.data_dir.name + ".server.log")

    def start(self) -> "Server":
        reader, writer = os.pipe()
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("RUNSTEAD_", "HF_"))}
        environment["RUNSTEAD_EXECUTOR_KIND"] = "process"  # what is tested with containers says so
        # Jobs see what the values of such variables name: programs of these tests, wherever the checkout is.
        environment["CHECKOUT"] = str(ROOT)
        environment["RUNSTEAD_EXECUTOR_PASS_ENVIRONMENT"] = ",".join((*PASSED_BY_DEFAULT, "CHECKOUT"))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(*self.program, "serve", "--port", str(self.port), "--data-dir", str(self.data_dir)),
                    *("--ready-fd", str(writer)),
                    *self.flags,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment | self.environment,
                pass_fds=[writer],
                start_new_session=True,
            )
        os.close(writer)
        with os.fdopen(reader) as pipe:
            text = pipe.read()
        assert text, f"the server did not start:\n{self.log.read_text()[-4000:]}"
        said = json.loads(text)
        self.url, self.owner = said["url"], said["owner"]
        self.token = said["token"] or self.token
        self.port = urlsplit(self.url).port or self.port
        return self

    def kill(self) -> None:
        """End the server as a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(20)

    def terminate(self) -> int:
        """Ask the server to stop, and return its exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(30)

    def stop(self) -> None:
        """Stop the server and everything it runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()

    def run(self, *words: str, check: bool = True, **options: Any) -> "subprocess.CompletedProcess[str]":
        """Run a `runstead` command on this server's data directory."""
        command = [sys.executable, "-m", "runstead.cli", *words, "--data-dir", str(self.data_dir)]
        done = subprocess.run(command, text=True, capture_output=True, timeout=60, check=False, **options)
        assert not check or done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done


def volumes_server(way: str, data_dir: Path, *flags: str) -> Server:
    """A server whose volumes appear in this way. Skips where they cannot."""
    if way == "mount" and (lacking := mount_problem()) is not None:
        pytest.skip(lacking)
    return Server(data_dir, flags, {"RUNSTEAD_EXECUTOR_VOLUMES": way})


@dataclass
class Client:
    """One version of huggingface_hub, unmodified, signed in to one server."""

    version: str
    server: Server
    home: Path
    token: str = ""

    @property
    def bin(self) -> Path:
        return CLIENTS / f"client-{self.version}" / "bin"

    @property
    def environment(self) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "RUNSTEAD_", "PYTHON"))}
        return inherited | {
            "HF_ENDPOINT": self.server.url,
            "HF_TOKEN": self.token or self.server.token,
            "HF_HOME": str(self.home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "NO_COLOR": "1",
            "COLUMNS": "200",
            "TERM": "dumb",
            "PATH": f"{self.bin}:{os.environ['PATH']}",
        }

    def hf(self, *words: str, check: bool = True, timeout: float = 60) -> "subprocess.CompletedProcess[str]":
        """Run the `hf` command line."""
        done = subprocess.run(
            [str(self.bin / "hf"), *words],
            env=self.environment,
            text=True,
            capture_output=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        if check:
            assert done.returncode == 0, f"hf {' '.join(words)}\n{done.stdout}\n{done.stderr}"
        return done

    def popen(self, *words: str) -> "subprocess.Popen[str]":
        """Start the `hf` command line and do not wait."""
        return subprocess.Popen(
            [str(self.bin / "hf"), *words],
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )

    def python(self, code: str, timeout: float = 60) -> Any:
        """Run Python with the client's library; `out(value)` in the code is what this returns."""
        prelude = "import json,sys\ndef out(v): print('OUT:' + json.dumps(v, default=str))\n"
        done = subprocess.run(
            [str(self.bin / "python"), "-c", prelude + code],
            env=self.environment,
            text=True,
            capture_output=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        lines = [line[4:] for line in done.stdout.splitlines() if line.startswith("OUT:")]
        return json.loads(lines[-1]) if lines else None


def make_client(version: str, server: Server, home: Path) -> Client:
    made = Client(version, server, home / f"hf-{version}")
    if not (made.bin / "hf").exists():
        pytest.fail(f"no client {version} in {CLIENTS}: run `make test` once, which installs it")
    return made


def eventually(seen: Any, within: float = 10.0) -> Any:
    """Return the first true value of `seen()`; for what other processes do and nobody announces."""
    deadline = time.monotonic() + within
    while True:
        value = seen()
        if value or time.monotonic() > deadline:
            return value
        time.sleep(0.02)
