"""Control groups of a job: limits for processors, memory and processes, and what was used.

Works with version 2, version 1 and both beside each other. A *place* is where groups can be made: its kind
("v2", or the name of a version 1 controller) and its directory. A job has a directory of its own name in
every place. Everything is plain reading and writing of small files; nothing here waits.
"""

import os
import signal
import time

PERIOD_MICROS = 100_000
SPARE = "spare-"  # begins the names of groups made before there is a job for them
_RELEASE_SECONDS = 5.0
_CONTROLLERS = ("cpu", "memory", "pids")
_LEAF = "first"
_V1 = ("cpu", "cpuacct", "memory", "pids")


def find_places(name: str) -> tuple[list[list[str]], list[str]]:
    """Return the places in which this process may make groups, under a directory `name`, and what is missing."""
    places: list[list[str]] = []
    reasons: list[str] = []
    own = _groups_of("self")
    for kind, mount in _mounts():
        if kind == "v2":
            place = _prepare_v2(mount, own.get("", "/"), name, reasons)
        else:
            place = _prepare_v1(mount, own.get(kind, "/"), name, kind, reasons)
        if place is not None:
            places.append([kind, place])
    for _kind, path in places:
        _release_spares(path)  # of supervisors that were killed
    have = {kind for kind, _ in places}
    missing = [
        f"no control group for {what}: {'; '.join(reasons) or 'this machine has none'}"
        for what, kind in (("memory", "memory"), ("processors", "cpu"), ("processes", "pids"))
        if kind not in have and "v2" not in have
    ]
    return places, missing


def folders_of(pid: int) -> list[list[str]]:
    """Return the groups that a process is in, whoever made them: kind and directory of each."""
    groups = _groups_of(str(pid))
    found: list[list[str]] = []
    for kind, mount in _mounts(every=True):
        names = [""] if kind == "v2" else [kind, f"name={kind}"]
        path = next((groups[name] for name in names if name in groups), None)
        if path is not None:
            found.append([kind, os.path.join(mount, path.lstrip("/"))])
    return found


def enter_all(folders: list[list[str]]) -> None:
    """Move this process, which has one thread, into such groups."""
    for kind, path in folders:
        _write(f"{path}/cgroup.procs" if kind == "v2" else f"{path}/tasks", "0")


def release_places(places: list[list[str]]) -> None:
    """Remove the directories that `find_places` made, where no group is left in them.

    Spare groups go as well; those whose process is just leaving are waited for.
    """
    until = time.monotonic() + _RELEASE_SECONDS
    for _kind, path in places:
        while not _release(path) and time.monotonic() < until:
            time.sleep(0.005)


def _release(path: str) -> bool:
    _release_spares(path)
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _release_spares(path: str) -> None:
    """Remove the spare groups in which there is nobody."""
    try:
        names = [name for name in os.listdir(path) if name.startswith(SPARE)]
    except OSError:
        return
    for name in names:
        try:
            os.rmdir(os.path.join(path, name))
        except OSError:
            continue


def _groups_of(process: str) -> dict[str, str]:
    """Return the groups of a process: controller ("" for version 2) to path."""
    found: dict[str, str] = {}
    try:
        with open(f"/proc/{process}/cgroup", encoding="utf-8") as lines:
            for line in lines:
                _, names, path = line.rstrip("\n").split(":", 2)
                for controller in names.split(","):
                    found[controller] = path
    except OSError:
        pass
    return found


def _mounts(*, every: bool = False) -> list[tuple[str, str]]:
    """Return kind and place of what is mounted, `every` kind or those that we limit with."""
    found: list[tuple[str, str]] = []
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                left, _, right = line.partition(" - ")
                kind, _, options = right.rstrip("\n").split(" ", 2)
                if kind == "cgroup2":
                    found.append(("v2", left.split(" ")[4]))
                elif kind == "cgroup":
                    words = options.split(" ")[-1].split(",")
                    named = [word.removeprefix("name=") for word in words] if every else _V1
                    found.extend((name, left.split(" ")[4]) for name in named if every or name in words)
    except OSError:
        pass
    seen: set[str] = set()
    return [(kind, path) for kind, path in found if not (kind in seen or seen.add(kind))]


def _prepare_v1(mount: str, own: str, name: str, kind: str, reasons: list[str]) -> str | None:
    base = os.path.join(mount, own.lstrip("/"))
    if not os.path.isdir(base):  # seen from inside of a container
        base = mount
    place = os.path.join(base, name)
    try:
        os.makedirs(place, exist_ok=True)
        if kind == "memory":
            _try_write(os.path.join(place, "memory.use_hierarchy"), "1")
    except OSError as error:
        reasons.append(f"{place}: {error.strerror}")
        return None
    return place


def _prepare_v2(mount: str, own: str, name: str, reasons: list[str]) -> str | None:
    candidates = [os.path.join(mount, own.lstrip("/"))]
    if os.geteuid() == 0:
        candidates.append(mount)
    for base in dict.fromkeys(candidates):
        available = set(_read(os.path.join(base, "cgroup.controllers")).split())
        if not available.issuperset(_CONTROLLERS):
            lacking = ", ".join(sorted(set(_CONTROLLERS) - available))
            reasons.append(f"{base}: not handed down: {lacking} (a service unit needs Delegate=yes)")
            continue
        try:
            _enable(base, leave=base != mount)
            place = os.path.join(base, name)
            os.makedirs(place, exist_ok=True)
            _enable(place, leave=False)
        except OSError as error:
            reasons.append(f"{base}: {error.strerror}")
            continue
        return place
    return None


def _enable(group: str, *, leave: bool) -> None:
    """Hand the controllers down to the groups below."""
    path = os.path.join(group, "cgroup.subtree_control")
    if set(_read(path).split()).issuperset(_CONTROLLERS):
        return
    if leave:  # a group that hands controllers down may hold no processes: ours move into a leaf
        members = [int(word) for word in _read(os.path.join(group, "cgroup.procs")).split()]
        strangers = [pid for pid in members if pid != os.getpid() and not _is_ours(pid)]
        if strangers:
            raise OSError(16, f"other processes are in it ({strangers[0]}, ...)")
        leaf = os.path.join(group, "runstead-server")
        os.makedirs(leaf, exist_ok=True)
        for pid in members:
            _write(os.path.join(leaf, "cgroup.procs"), str(pid))
    _write(path, " ".join(f"+{name}" for name in _CONTROLLERS))


def _is_ours(pid: int) -> bool:
    """Say whether a process is the server, a launcher or a supervisor."""
    return b"runstead" in _read_bytes(f"/proc/{pid}/cmdline")


def enter_opened(opened: list[int]) -> None:
    """Do as Group.enter_alone, with what Group.open returned."""
    for fd in opened:
        os.write(fd, b"0")


class Group:
    """The control groups of one attempt, one in each place."""

    def __init__(self, places: list[list[str]], name: str) -> None:
        self._paths = [(kind, os.path.join(place, name)) for kind, place in places]

    @property
    def paths(self) -> list[list[str]]:
        """Kind and directory of each."""
        return [[kind, path] for kind, path in self._paths]

    def create(self, *, cpu_millicores: int, memory_bytes: int, pids_limit: int) -> None:
        """Make them with these limits (0: none)."""
        for kind, path in self._paths:
            try:
                os.mkdir(path)
            except FileExistsError:
                pass
            except FileNotFoundError:
                os.makedirs(path, exist_ok=True)
            if kind in ("v2", "cpu") and cpu_millicores:
                quota = max(cpu_millicores * PERIOD_MICROS // 1000, 1000)
                if kind == "v2":
                    _write(f"{path}/cpu.max", f"{quota} {PERIOD_MICROS}")
                else:
                    _try_write(f"{path}/cpu.cfs_period_us", str(PERIOD_MICROS))
                    _try_write(f"{path}/cpu.cfs_quota_us", str(quota))
            if kind == "v2" and memory_bytes:
                _write(f"{path}/memory.max", str(memory_bytes))
                _try_write(f"{path}/memory.swap.max", "0")
            if kind == "memory" and memory_bytes:
                _write(f"{path}/memory.limit_in_bytes", str(memory_bytes))
                _try_write(f"{path}/memory.memsw.limit_in_bytes", str(memory_bytes))
            if kind in ("v2", "pids") and pids_limit:
                _write(f"{path}/pids.max", str(pids_limit))

    def below(self, name: str) -> "Group":
        """Return groups of that name below these, where there is something to limit."""
        return Group([[kind, path] for kind, path in self._paths if kind != "cpuacct"], name)

    def undivided(self) -> "Group":
        """Return those of these groups that have none below, as `below` makes them."""
        found = Group([], "")
        found._paths = [(kind, path) for kind, path in self._paths if kind == "cpuacct"]
        return found

    def enter_alone(self) -> None:
        """Move this process, which has one thread, inside.

        In version 1 the kernel lets a thread move itself at once; to move another process it first waits for all
        processors.
        """
        for kind, path in self._paths:
            _write(f"{path}/cgroup.procs" if kind == "v2" else f"{path}/tasks", "0")

    def open(self) -> list[int]:
        """Open what `enter_opened` needs, for a process that will not see these groups any more."""
        return [
            os.open(f"{path}/cgroup.procs" if kind == "v2" else f"{path}/tasks", os.O_WRONLY | os.O_CLOEXEC)
            for kind, path in self._paths
        ]

    def divide(self) -> None:
        """Make ready for groups below these. In version 2 a group with such holds no processes: they go to a leaf."""
        for kind, path in self.paths:
            if kind == "v2":
                leaf = os.path.join(path, _LEAF)
                os.makedirs(leaf, exist_ok=True)
                for word in _read(f"{path}/cgroup.procs").split():
                    _try_write(f"{leaf}/cgroup.procs", word)
                _write(f"{path}/cgroup.subtree_control", " ".join(f"+{name}" for name in _CONTROLLERS))

    def enter(self, pid: int) -> None:
        """Move a process inside. The kernel may take 5 to 15 ms for the first move in a while."""
        for _kind, path in self._paths:
            _write(f"{path}/cgroup.procs", str(pid))

    def memory_kills(self) -> int:
        """Return how many processes the kernel killed because the memory limit was reached."""
        for kind, path in self._paths:
            if kind == "v2":
                return _value(f"{path}/memory.events", "oom_kill")
            if kind == "memory":
                return _value(f"{path}/memory.oom_control", "oom_kill")
        return 0

    def was_full(self) -> bool:
        """Say whether the memory limit was ever reached, also by a group below, whose deaths are not counted here."""
        for kind, path in self._paths:
            if kind == "v2":
                return _value(f"{path}/memory.events", "max") > 0
            if kind == "memory":
                most, limit = (_read(f"{path}/memory.{name}_in_bytes") for name in ("max_usage", "limit"))
                return int(most or 0) >= int(limit or 1)
        return False

    def cpu_seconds(self) -> float | None:
        """Return the processor time used; None where nobody counts it."""
        for kind, path in self._paths:
            if kind == "v2":
                return _value(f"{path}/cpu.stat", "usage_usec") / 1e6
            if kind == "cpuacct":
                return int(_read(f"{path}/cpuacct.usage") or 0) / 1e9
        return None

    def memory_bytes(self) -> int | None:
        """Return the memory in use, without file pages that could go at once; None where nobody counts it."""
        for kind, path in self._paths:
            if kind == "v2":
                used = int(_read(f"{path}/memory.current") or 0)
                return max(used - _value(f"{path}/memory.stat", "inactive_file"), 0)
            if kind == "memory":
                used = int(_read(f"{path}/memory.usage_in_bytes") or 0)
                return max(used - _value(f"{path}/memory.stat", "total_inactive_file"), 0)
        return None

    def members(self) -> set[int]:
        """Return the ids of the processes inside."""
        found: set[int] = set()
        for _kind, path in self._paths:
            found.update(int(word) for word in _read(f"{path}/cgroup.procs").split())
        return found

    def kill(self) -> bool:
        """Send SIGKILL to all inside; return whether there was anybody."""
        for kind, path in self._paths:
            if kind == "v2" and _try_write(f"{path}/cgroup.kill", "1"):
                return bool(self.members())
        members = self.members() - {os.getpid()}
        for pid in members:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        return bool(members)

    def remove(self) -> bool:
        """Remove the groups; return whether they are gone. Processes that just died may need a moment."""
        gone = True
        for _kind, path in self._paths:
            try:
                os.rmdir(path)
            except FileNotFoundError:
                continue
            except OSError:
                gone = _remove_with_below(path) and gone
        return gone


def _remove_with_below(path: str) -> bool:
    try:
        for name in [entry.name for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]:
            os.rmdir(os.path.join(path, name))
        os.rmdir(path)
    except OSError:
        return False
    return True


def _value(path: str, key: str) -> int:
    for line in _read(path).splitlines():
        name, _, value = line.partition(" ")
        if name == key:
            return int(value)
    return 0


def _read(path: str) -> str:
    return _read_bytes(path).decode("utf-8", "replace")


def _read_bytes(path: str) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 1 << 16)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _try_write(path: str, text: str) -> bool:
    try:
        _write(path, text)
    except OSError:
        return False
    return True
