"""The way into a container that somebody else has made: an engine of the machine, or an OCI runtime.

The agent stays outside, where nobody inside sees or ends it; each of its workers is forked among the container's
processes and enters what else is the container's own: control groups, namespaces, limits, then its rights. What an
engine has laid down for the container's first process is read from that process, so that nothing is granted twice.
"""

import errno
import os
import resource
import signal
import time

from runstead.node import cgroups, namespaces, seccomp, syscalls, users
from runstead.node.inside import imports

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_SPACES = (
    syscalls.CLONE_NEWNS
    | syscalls.CLONE_NEWNET
    | syscalls.CLONE_NEWIPC
    | syscalls.CLONE_NEWUTS
    | syscalls.CLONE_NEWCGROUP
)
_LIMITS = {
    "Max cpu time": "CPU",
    "Max file size": "FSIZE",
    "Max data size": "DATA",
    "Max stack size": "STACK",
    "Max core file size": "CORE",
    "Max resident set": "RSS",
    "Max processes": "NPROC",
    "Max open files": "NOFILE",
    "Max locked memory": "MEMLOCK",
    "Max address space": "AS",
    "Max pending signals": "SIGPENDING",
    "Max msgqueue size": "MSGQUEUE",
    "Max nice priority": "NICE",
    "Max realtime priority": "RTPRIO",
}
_NOT_EXECUTED = 0x40  # PF_FORKNOEXEC
_EXECUTED_SECONDS = 5.0
_PAUSE_SECONDS = 0.001
_UNCONFINED = ("", "unconfined", "kernel")


class Entrance:
    """Into one container. Raises OSError where it cannot be entered, or is gone."""

    def __init__(self, pid: int, user: str) -> None:
        """`pid`: its first process, as this process sees it; `user`: who programs run as, as USER of a Dockerfile."""
        self.pid = pid
        self._process = os.pidfd_open(pid)
        self._ours = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        self._user = user
        if _status(pid).get("NSpid", "").split()[1:][-1:] != ["1"]:
            raise ProcessLookupError(errno.ESRCH, "the container has no first process of its own")
        self._own_users = _differs(pid, "user")
        self.own_network = _differs(pid, "net")
        self._check()
        # Those inside may look at our workers, but not into them.
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)

    def _check(self) -> None:
        """Raise ProcessLookupError when the first process is gone, and its number perhaps another's."""
        signal.pidfd_send_signal(self._process, 0)

    def fork(self) -> int:
        """Do as os.fork does; the child is one of the container's processes, and has entered nothing else yet."""
        syscalls.enter(self._process, syscalls.CLONE_NEWPID)
        pid = -1
        try:
            pid = os.fork()
        finally:
            if pid:
                syscalls.enter(self._ours, syscalls.CLONE_NEWPID)
        return pid

    def enter(self) -> users.User:
        """Become a process like those inside, with the rights of their root; return who programs run as."""
        until = time.monotonic() + _EXECUTED_SECONDS
        while _is_being_made(self.pid) and time.monotonic() < until:
            time.sleep(_PAUSE_SECONDS)
        mask = int(_status(self.pid).get("CapBnd", "0"), 16)
        kept = frozenset(number for number in range(64) if mask >> number & 1)
        limits = _read(f"/proc/{self.pid}/limits")
        label = _read(f"/proc/{self.pid}/attr/current")
        groups = cgroups.folders_of(self.pid)
        self._check()
        cgroups.enter_all(groups)
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
            score.write("0")
        _take_label(label)
        for number, soft, hard in limits_in(limits):
            most = resource.getrlimit(number)[1]  # not every server may go beyond its own
            resource.setrlimit(number, (_lower(soft, most), _lower(hard, most)))
        syscalls.enter(self._process, _SPACES)
        if self._own_users:
            syscalls.enter(self._process, syscalls.CLONE_NEWUSER)
            namespaces.become_root_inside()
        os.chdir("/")
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        namespaces.drop_capabilities(here=True, kept=kept)
        try:
            seccomp.load()
        except OSError as error:
            if error.errno != errno.EINVAL:  # a kernel without filters
                raise
        imports.stop()
        return users.find(self._user)

    def signal_group(self, leader: int, number: int) -> None:
        """Signal a process group, by the number that it has inside."""
        self._among_them(lambda: os.killpg(leader, number))

    def signal_all(self, number: int) -> None:
        """Signal every process inside but the first."""
        self._among_them(lambda: os.kill(-1, number))

    def _among_them(self, act: "Callable[[], None]") -> None:
        try:
            child = self.fork()
        except OSError:
            return  # it is gone
        if child == 0:
            try:
                act()
            finally:
                os._exit(0)
        try:
            os.waitpid(child, 0)
        except ChildProcessError:
            return  # somebody who buries all that die was faster


def _take_label(found: str) -> None:
    """Have programs confined by the machine's security module (AppArmor, SELinux) as the container is."""
    if found == _read("/proc/self/attr/current") or (text := label_to_take(found)) is None:
        return
    with open("/proc/self/attr/exec", "w", encoding="utf-8") as file:
        file.write(text)


def label_to_take(found: str) -> str | None:
    """Return what to ask for to be labelled so from the next program on; None for no label."""
    label = found.rstrip("\n\0").removesuffix(" (enforce)").removesuffix(" (complain)")
    if label in _UNCONFINED:
        return None
    return label if label.count(":") >= 3 else f"exec {label}"  # of SELinux, or of AppArmor


def limits_in(text: str) -> list[tuple[int, int, int]]:
    """Return the limits in a file /proc/<pid>/limits: number, soft, hard."""
    found: list[tuple[int, int, int]] = []
    for line in text.splitlines():
        name = next((name for name in _LIMITS if line.startswith(f"{name} ")), None)
        if name is not None:
            values = line.removeprefix(name).split()[:2]
            soft, hard = (resource.RLIM_INFINITY if word == "unlimited" else int(word) for word in values)
            found.append((getattr(resource, f"RLIMIT_{_LIMITS[name]}"), soft, hard))
    return found


def _lower(wanted: int, most: int) -> int:
    if wanted == resource.RLIM_INFINITY or most == resource.RLIM_INFINITY:
        return most if wanted == resource.RLIM_INFINITY else wanted
    return min(wanted, most)


def _is_being_made(pid: int) -> bool:
    """Say whether a process is still its runtime's, before the container's program: its rights are not complete."""
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return len(fields) > 6 and bool(int(fields[6]) & _NOT_EXECUTED)


def _differs(pid: int, kind: str) -> bool:
    return os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")


def _status(pid: int) -> dict[str, str]:
    rows = (line.partition(":") for line in _read(f"/proc/{pid}/status").splitlines())
    return {name: value.strip() for name, _, value in rows}


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
