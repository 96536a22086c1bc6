"""Several machines on one: each a network, a name service and a hosts file of its own, joined by a switch.

They are namespaces of Linux that live as long as a sleeping process. Nothing of the machine's own network is touched.
Names are resolved as they are elsewhere, by asking a server over UDP (`name_service.py`).
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_NETWORK = "198.18.77"  # of the block for tests between networks (RFC 2544); no other namespace sees it
_WITH_US = ("setpriv", "--pdeathsig", "KILL")  # ends when the tests end, however that is
_PATIENCE_SECONDS = 80  # then a little Python says what it waits for
_NEEDED = ("ip", "nsenter", "setpriv", "unshare")


def problem() -> str | None:
    """Say why there can be no several machines here."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        return f"network namespaces need {', '.join(missing)}"
    done = subprocess.run(["unshare", "-n", "-m", "true"], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"network namespaces cannot be had: {done.stderr.strip()}"


@dataclass
class Machine:
    """A machine: programs run on it by way of `inside`."""

    name: str
    address: str
    folder: Path
    holder: "subprocess.Popen[str]"
    started: "list[subprocess.Popen[Any]]" = field(default_factory=list)

    @property
    def inside(self) -> tuple[str, ...]:
        """The words in front of a command that runs it there."""
        return ("nsenter", "-t", str(self.holder.pid), "-n", "-m", "--")

    def run(
        self, *words: str, check: bool = True, env: Mapping[str, str] | None = None, timeout: float = 120
    ) -> "subprocess.CompletedProcess[str]":
        """Run a program to its end."""
        command = [*self.inside, *words]
        done = subprocess.run(command, text=True, capture_output=True, check=False, env=env, timeout=timeout)
        assert not check or done.returncode == 0, f"{self.name}: {' '.join(words)}: {done.stdout}{done.stderr}"
        return done

    def python(self, code: str, *words: str, trusts: Path, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run a little Python with the libraries of the tests, which trusts one authority."""
        environment = without_proxies(os.environ) | {"SSL_CERT_FILE": str(trusts)}
        code = f"import faulthandler; faulthandler.dump_traceback_later({_PATIENCE_SECONDS}, exit=True)\n{code}"
        return self.run(sys.executable, "-c", code, *words, check=check, env=environment)

    def start(self, *words: str, says_when: bool = False, log: Path | None = None) -> None:
        """Start a program that ends with the machine. One that `says_when` writes a line once it is ready."""
        with (log or Path(os.devnull)).open("ab") as errors:
            process = subprocess.Popen(
                [*self.inside, *_WITH_US, *words],
                text=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if says_when else errors,
                stderr=None if says_when else errors,
            )
        self.started.append(process)
        if says_when:
            assert process.stdout is not None and process.stdout.readline(), f"{words[0]} failed on {self.name}"

    def close(self) -> None:
        """End all there is on it."""
        for process in [*self.started, self.holder]:
            process.kill()
            process.wait(20)
            if process.stdout is not None:
                process.stdout.close()


class Network:
    """A switch, and the machines at it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.machines: list[Machine] = []
        self._switch = self._make("switch", f"{_NETWORK}.1")
        # An address of its own: else it changes as machines are added, and who knew the old one waits half a minute.
        self._switch.run("ip", "link", "add", "br0", "address", "02:00:00:00:00:01", "type", "bridge")
        self._switch.run("ip", "address", "add", f"{self._switch.address}/24", "dev", "br0")
        self._switch.run("ip", "link", "set", "br0", "up")
        self._names = folder / "names"
        self._names.touch()
        program = str(Path(__file__).with_name("name_service.py"))
        self._switch.start(sys.executable, program, self._switch.address, str(self._names), says_when=True)

    def machine(self, name: str) -> Machine:
        """Add a machine."""
        made = self._make(name, f"{_NETWORK}.{len(self.machines) + 1}")
        peer = ("peer", "name", made.name, "netns", str(self._switch.holder.pid))
        made.run("ip", "link", "add", "eth0", "type", "veth", *peer)
        made.run("ip", "address", "add", f"{made.address}/24", "dev", "eth0")
        made.run("ip", "link", "set", "eth0", "up")
        self._switch.run("ip", "link", "set", made.name, "master", "br0", "up")
        return made

    def name(self, machine: Machine, *names: str) -> None:
        """Let the name service know a machine by more names, `*.` in front of them included where it is written."""
        with self._names.open("a") as file:
            file.writelines(f"{name} {machine.address}\n" for name in names)

    def close(self) -> None:
        for machine in self.machines:
            machine.close()

    def _make(self, name: str, address: str) -> Machine:
        folder = self.folder / name
        folder.mkdir()
        alone = ("unshare", "-n", "-m", "--propagation", "private", *_WITH_US)
        words = (*alone, "sh", "-c", "echo made; exec sleep infinity")
        holder = subprocess.Popen(words, text=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        assert holder.stdout is not None and holder.stdout.readline() == "made\n"
        made = Machine(name, address, folder, holder)
        self.machines.append(made)
        made.run("ip", "link", "set", "lo", "up")
        files = {
            "resolv.conf": f"nameserver {_NETWORK}.1\n",
            "hosts": f"127.0.0.1 localhost\n::1 localhost\n{address} {name}\n",
            "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
        }
        for file, text in files.items():
            (folder / file).write_text(text)
            made.run("mount", "--bind", str(folder / file), str(Path("/etc", file).resolve()))
        return made


@contextmanager
def network(folder: Path) -> Generator[Network]:
    """Make a network; skips where that cannot be."""
    if (lacking := problem()) is not None:
        pytest.skip(lacking)
    made = Network(folder)
    try:
        yield made
    finally:
        made.close()


def without_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """Leave out what this machine uses to reach others."""
    ours = ("_proxy", "ssl_cert_file", "ssl_cert_dir", "requests_ca_bundle", "curl_ca_bundle")
    return {name: value for name, value in environment.items() if not name.lower().endswith(ours)}
