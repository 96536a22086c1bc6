"""The filter of system calls: the numbers are the kernel's, and what it does to a process that is behind it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from runstead.node import seccomp

_HEADERS = {
    0: (Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), r"#define __NR_(\w+)\s+(\d+)"),
    1: (Path("/usr/include/asm-generic/unistd.h"), r"#define __NR(?:3264)?_(\w+)\s+(\d+)"),
}


@pytest.mark.parametrize("column", [0, 1])
def test_the_numbers_are_those_of_the_kernel(column: int) -> None:
    path, pattern = _HEADERS[column]
    if not path.exists():
        pytest.skip(f"there is no {path}")
    known = {name: int(number) for name, number in re.findall(pattern, path.read_text())}
    ours = {name: pair[column] for name, pair in seccomp.REFUSED.items()}
    newer = {name for name, number in ours.items() if number and number > max(known.values())}
    assert {name: number for name, number in ours.items() if name not in newer} == {
        name: known.get(name) for name in ours if name not in newer
    }


_BEHIND = """
import ctypes, errno, os, sys
sys.path.insert(0, sys.argv[1])
from runstead.node import seccomp, syscalls
syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
assert seccomp.load()
libc = ctypes.CDLL(None, use_errno=True)
def call(*words):
    ctypes.set_errno(0)
    result = libc.syscall(*[ctypes.c_long(word) for word in words])
    return errno.errorcode.get(ctypes.get_errno(), result) if result < 0 else result
"""


def _behind(code: str) -> str:
    source = str(Path(seccomp.__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", _BEHIND + code, source], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_is_refused_is_refused_and_the_rest_works() -> None:
    column = {"x86_64": 0, "aarch64": 1}[os.uname().machine]
    numbers = [pair[column] for pair in seccomp.REFUSED.values() if pair[column] is not None]
    assert _behind(f"print({{call(n, -1, 0, 0, 0, 0, 0) for n in {numbers}}})") == "{'EPERM'}"
    assert _behind("import subprocess; print(subprocess.run(['echo', 'hi'], capture_output=True).stdout)") == "b'hi\\n'"
    assert _behind("import threading; t = threading.Thread(target=print, args=('t',)); t.start(); t.join()") == "t"
    assert _behind("import socket; socket.socketpair(); socket.create_server(('127.0.0.1', 0)); print(1)") == "1"


def test_namespaces_the_hypervisor_and_odd_personalities_are_refused() -> None:
    clone, personality, sock = {"x86_64": (56, 135, 41), "aarch64": (220, 92, 198)}[os.uname().machine]
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert _behind(f"print(call({clone}, {flag} | 17, 0, 0, 0, 0))") == "EPERM"
    assert _behind("print(call(435, 0, 0))") == "ENOSYS"
    assert _behind(f"print(call({sock}, 40, 1, 0), call({sock}, 2, 1, 0) > 0)") == "EPERM True"
    allowed = [f"call({personality}, {value}) != 'EPERM'" for value in seccomp.PERSONALITIES]
    assert _behind(f"print({', '.join(allowed)}, call({personality}, 0x40000))") == "True " * 5 + "EPERM"
    assert _behind("print(call(470), call(4000), call(0x40000000 + 39))") == "ENOSYS ENOSYS ENOSYS"


def test_it_cannot_be_taken_off() -> None:
    again = "import ctypes\ntry: seccomp.load(); print(call(272 if os.uname().machine == 'x86_64' else 97, 0))\n"
    assert _behind(again + "except OSError as error: print(error)") == "EPERM"


def test_other_processors_have_a_filter_or_none() -> None:
    assert seccomp.assemble("aarch64") is not None
    assert seccomp.assemble("riscv64") is None
