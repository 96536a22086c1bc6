"""The smallest program that stays: the command of a container that is there for its inside alone.

An image need not have any program that waits, so we bring one: a hundred bytes that block every signal, let the kernel
bury orphans, and wait for ever. Only SIGKILL ends it, or the end of the container.
"""

import struct

PATH = "/.runstead-pause"  # in the container

# What `rt_sigprocmask(SIG_SETMASK, all); rt_sigaction(SIGCHLD, SIG_IGN); while (1) ppoll(0, 0, 0, 0, 0);` is in machine
# code, up to the eight-byte boundary at which the data begins.
_CODE = {
    "x86_64": (
        62,
        "b80e000000bf02000000488d355f00000031d241ba080000000f05"
        "b80d000000bf11000000488d352400000031d241ba080000000f05"
        "b80f01000031ff31f631d24531d24531c00f05ebeb0f1f440000",
    ),
    "aarch64": (
        183,
        "e81080d2400080d241030010020080d2030180d2010000d4c81080d2200280d281010010020080d2"
        "030180d2010000d4280980d2000080d2010080d2020080d2030080d2040080d2010000d4f9ffff17",
    ),
}
_NAMES = {"amd64": "x86_64", "arm64": "aarch64"}
_DATA = struct.pack("<5Q", 1, 0, 0, 0, 2**64 - 1)  # the action, SIG_IGN; the mask
_BASE = 0x400000
_HEADERS = 64 + 56
_READ_EXECUTE = 5


def program(machine: str) -> bytes | None:
    """Return the executable file for a kind of processor, as `uname -m` or an engine names it; None for others."""
    found = _CODE.get(_NAMES.get(machine, machine))
    if found is None:
        return None
    number, text = found
    code = bytes.fromhex(text) + _DATA
    size = _HEADERS + len(code)
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack("<HHIQQQIHHHHHH", 2, number, 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, _READ_EXECUTE, 0, _BASE, _BASE, size, size, 0x1000)
    return identity + header + segment + code
