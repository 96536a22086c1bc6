"""The system calls that a job in a container has no use for, and the filter that refuses them.

The list is what container engines refuse by default (the documentation of Docker's profile names the reasons): calls
that act on the machine rather than on the job, and parts of the kernel that have been the way out of containers before.
The filter is a small BPF program, assembled once; loading it takes microseconds.
"""

import ctypes
import errno
import os
import struct

from runstead.node import syscalls

# Name: number on x86_64, number on arm64; None where there is none.
REFUSED: dict[str, tuple[int | None, int | None]] = {
    "_sysctl": (156, None),
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "create_module": (174, None),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "get_kernel_syms": (177, None),
    "get_mempolicy": (239, 236),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "lookup_dcookie": (212, 18),
    "mbind": (237, 235),
    "migrate_pages": (256, 238),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "nfsservctl": (180, 42),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "open_tree_attr": (467, 467),
    "perf_event_open": (298, 241),
    "pivot_root": (155, 41),
    "query_module": (178, None),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "sysfs": (139, None),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "uselib": (134, None),
    "userfaultfd": (323, 282),
    "ustat": (136, None),
    "vhangup": (153, 58),
}
_CLONE, _CLONE3, _PERSONALITY, _SOCKET = (56, 220), (435, 435), (135, 92), (41, 198)
NAMESPACE_FLAGS = 0x7E020000  # of clone: a new namespace of any kind
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
AF_VSOCK = 40  # leads to the hypervisor
# What came after it is not known to us, so it is refused as if the kernel did not know it either.
_NEWEST = 469

# Number and offset of fields in the kernel's struct seccomp_data; low halves of the arguments (little-endian).
_NR, _ARCH, _ARG0 = 0, 4, 16
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000

_MODE_FILTER = 2


def assemble(machine: str) -> bytes | None:
    """Return the filter for a kind of processor, as an array of struct sock_filter; None for one we do not know."""
    if machine not in _ARCHITECTURES:
        return None
    column, architecture = _ARCHITECTURES[machine]
    refused = sorted(number for pair in REFUSED.values() if (number := pair[column]) is not None)
    program = [
        _load(_ARCH),
        _test(_EQUAL, architecture, 1, 0),
        _return(_ERRNO | errno.ENOSYS),  # another instruction set, as of 32-bit programs
        _load(_NR),
        _test(_GREATER, _NEWEST, 0, 1),
        _return(_ERRNO | errno.ENOSYS),
        _test(_EQUAL, _CLONE3[column], 0, 1),
        # Its flags are in memory, where no filter can look; programs fall back to clone.
        _return(_ERRNO | errno.ENOSYS),
        _test(_EQUAL, _CLONE[column], 0, 4),
        _load(_ARG0),
        _test(_ANY_BIT, NAMESPACE_FLAGS, 0, 1),
        _return(_ERRNO | errno.EPERM),
        _return(_ALLOW),
        _test(_EQUAL, _SOCKET[column], 0, 4),
        _load(_ARG0),
        _test(_EQUAL, AF_VSOCK, 0, 1),
        _return(_ERRNO | errno.EPERM),
        _return(_ALLOW),
        _test(_EQUAL, _PERSONALITY[column], 0, len(PERSONALITIES) + 3),
        _load(_ARG0),
        *(_test(_EQUAL, value, len(PERSONALITIES) - place, 0) for place, value in enumerate(PERSONALITIES)),
        _return(_ERRNO | errno.EPERM),
        _return(_ALLOW),
        *(_test(_EQUAL, number, len(refused) - place, 0) for place, number in enumerate(refused)),
        _return(_ALLOW),
        _return(_ERRNO | errno.EPERM),
    ]
    return b"".join(program)


def load() -> bool:
    """Put this process, and all that it starts, behind the filter; False where there is none for this machine.

    Needs PR_SET_NO_NEW_PRIVS. Raises OSError where the kernel has no filters.
    """
    if PROGRAM is None:
        return False
    syscalls.prctl(syscalls.PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(_DESCRIBED))
    return True


def _load(offset: int) -> bytes:
    return struct.pack("=HBBI", _LOAD, 0, 0, offset)


def _test(kind: int, value: int, yes: int, no: int) -> bytes:
    """Go on `yes` or `no` instructions further."""
    return struct.pack("=HBBI", kind, yes, no, value)


def _return(value: int) -> bytes:
    return struct.pack("=HBBI", _RETURN, 0, 0, value)


PROGRAM = assemble(os.uname().machine)
# As the kernel wants to be told of it; made here, for processes that were just forked pay for whatever they make.
_INSTRUCTIONS = ctypes.create_string_buffer(PROGRAM or b"")
_DESCRIBED = ctypes.create_string_buffer(struct.pack("@HP", len(PROGRAM or b"") // 8, ctypes.addressof(_INSTRUCTIONS)))
