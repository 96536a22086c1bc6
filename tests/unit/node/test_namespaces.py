"""User namespaces that nobody is in."""

import os

import pytest

from runstead.node import processes, syscalls
from runstead.node.namespaces import UserNamespace

pytestmark = pytest.mark.skipif(
    not syscalls.LINUX or os.geteuid() != 0, reason="ids can be mapped by Linux's root alone"
)
_OWN = "/proc/self/ns/user"


def test_one_is_made_and_mapped_and_its_maker_is_gone() -> None:
    before = processes.children(os.getpid()) or []
    made = UserNamespace()
    made.map(0x70000000, 65536)
    taken = made.take()
    made.close()
    try:
        assert os.readlink(f"/proc/self/fd/{taken}") not in ("", os.readlink(_OWN))
        assert set(processes.children(os.getpid()) or []) <= set(before)
        assert os.readlink(_OWN) == os.readlink(f"/proc/{os.getppid()}/ns/user")
    finally:
        os.close(taken)


def test_a_placeholder_ends_without_having_touched_what_it_shares() -> None:
    marks = [os.urandom(16) for _ in range(100)]
    copies = [bytes(mark) for mark in marks]
    held = syscalls.Placeholder(syscalls.CLONE_NEWUSER)
    assert held.pid in (processes.children(os.getpid()) or [])
    held.end()
    assert marks == copies
    with pytest.raises(ChildProcessError):
        os.waitpid(held.pid, os.WNOHANG)
