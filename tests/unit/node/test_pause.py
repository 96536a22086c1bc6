"""The program that stays where nothing else does: run as it is, and told to end."""

import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runstead.node import pause


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    program = pause.program(platform.machine())
    if program is None or sys.platform != "linux":
        pytest.skip("there is none for these processors")
    path = tmp_path / "pause"
    path.write_bytes(program)
    path.chmod(0o755)
    with subprocess.Popen([path]) as process:
        yield process
        process.kill()


def test_it_stays_whatever_it_is_told(running: "subprocess.Popen[bytes]") -> None:
    status = Path(f"/proc/{running.pid}/status")
    while "SigBlk:\tffffffff" not in (text := status.read_text()):
        assert running.poll() is None
    ignored = int(next(line for line in text.splitlines() if line.startswith("SigIgn")).split()[1], 16)
    while not ignored >> (signal.SIGCHLD - 1) & 1:  # what nobody waits for is buried by the kernel
        assert running.poll() is None
        ignored = int(next(line for line in status.read_text().splitlines() if "SigIgn" in line).split()[1], 16)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(running.pid, number)
    assert running.poll() is None
    running.kill()
    assert running.wait(10) == -signal.SIGKILL


def test_engines_and_kernels_name_processors_differently() -> None:
    assert pause.program("amd64") == pause.program("x86_64")
    assert pause.program("arm64") == pause.program("aarch64")
    assert pause.program("m68k") is None
