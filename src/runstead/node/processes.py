"""Finding and ending a job's processes where no namespace holds them together."""

import os
import select
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container

# In the environment of every process of a job that runs without namespaces.
MARK = "RUNSTEAD_ATTEMPT"


def watch_children() -> int:
    """Return a file descriptor that becomes readable when a child ended; to be called before there is one."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    return reader


def reap(child: int) -> int | None:
    """Take the status of every child that ended; return that of `child` if it is among them."""
    found: int | None = None
    try:
        while True:
            ended, status = os.waitpid(-1, os.WNOHANG)
            if ended == 0:
                return found
            if ended == child:
                found = status
    except ChildProcessError:
        return found


def reap_all() -> list[tuple[int, int]]:
    """Take the status of every child that ended: pairs of id and status."""
    found: list[tuple[int, int]] = []
    try:
        while (pair := os.waitpid(-1, os.WNOHANG))[0]:
            found.append(pair)
    except ChildProcessError:
        pass
    return found


def end_child(pid: int) -> None:
    """Kill a child and wait for it; one that is gone already is no error."""
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def is_ours(pid: int) -> bool:
    """Say whether a process was forked from a launcher: a supervisor keeps its command line."""
    if not os.path.isdir("/proc/self"):
        return True
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return b"runstead.node.launcher" in file.read()
    except OSError:
        return False


def _parents() -> dict[int, list[int]]:
    """Return every process of the machine by its parent."""
    found: dict[int, list[int]] = {}
    if os.path.isdir("/proc/self"):
        for name in os.listdir("/proc"):
            if name.isdigit():
                try:
                    with open(f"/proc/{name}/stat", "rb") as file:
                        parent = int(file.read().rpartition(b")")[2].split()[1])
                except (OSError, IndexError, ValueError):
                    continue
                found.setdefault(parent, []).append(int(name))
        return found
    import subprocess  # only where there is no /proc: it costs a megabyte

    listing = subprocess.run(["ps", "-axo", "pid=,ppid="], capture_output=True, text=True, check=False)
    for line in listing.stdout.splitlines():
        pid, _, parent = line.strip().partition(" ")
        if parent:
            found.setdefault(int(parent), []).append(int(pid))
    return found


def descendants(pid: int) -> list[int]:
    """Return all processes below one, parents before children."""
    parents = _parents()
    found: list[int] = []
    waiting = [pid]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found.extend(children)
        waiting.extend(children)
    return found


def usage(pid: int) -> tuple[float, int]:
    """Return the processor seconds that all below a process used, their dead included, and the memory they use now."""
    ticks, pages = 0, 0
    for below in descendants(pid):
        try:
            with open(f"/proc/{below}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        ticks += sum(int(field) for field in fields[11:15])
        pages += int(fields[21])
    return ticks / os.sysconf("SC_CLK_TCK"), pages * os.sysconf("SC_PAGE_SIZE")


def signal_tree(child: int, number: int) -> None:
    """Signal a child's process group and everything below ourselves."""
    if child:
        _kill_all(os.killpg, {child}, number)
    group = {child}
    for pid in descendants(os.getpid()):
        try:
            if os.getpgid(pid) not in group:
                os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def end_descendants(seconds: float = 4.0) -> None:
    """Kill everything below ourselves until nothing is left; a subreaper gets even those that ran away."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        below = descendants(os.getpid())
        for pid in below:
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        reap(0)
        if not below:
            return
        select.select([], [], [], 0.001)


def is_childless() -> bool:
    """Say whether this process has no child but such as were waited for just now."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return True
    return False


def reap_until_childless(seconds: float) -> bool:
    """Wait for children until there are none; False when that takes too long."""
    until = time.monotonic() + seconds
    while not is_childless():
        if time.monotonic() > until:
            return False
        time.sleep(0.0005)
    return True


def end_all_below(child: int, seconds: float = 15.0) -> int:
    """Kill everything below this process, which is a subreaper, until nothing is left; return the status of `child`.

    All are stopped before any is killed: what multiplies faster than it can be killed runs into its limit, and finds
    no room in it any more. `child` has not been waited for yet.
    """
    until = time.monotonic() + seconds
    pause = 0.0002
    status: int | None = None
    _kill_all(os.killpg, {child}, signal.SIGKILL)
    while True:
        ended = reap(child)
        status = ended if status is None else status
        if is_childless() or time.monotonic() > until:
            return int(signal.SIGKILL) if status is None else status
        stopped: set[int] = set()
        while _stop_below(stopped):
            continue
        _kill_all(os.kill, stopped, signal.SIGKILL)
        select.select([], [], [], pause)
        pause = min(pause * 2, 0.02)


def can_tell_children() -> bool:
    """Say whether this kernel tells the children of a process."""
    return children(os.getpid()) is not None


def end_all_but(child: int, spared: "Container[int]", note: "Callable[[int, int], None]", seconds: float = 15.0) -> int:
    """Do as `end_all_below` but for some children with what is below them; return the status of `child`.

    Those of them that end meanwhile, and their statuses, go to `note`. Needs `can_tell_children`.
    """
    until = time.monotonic() + seconds
    pause = 0.0002
    status: int | None = None
    _kill_all(os.killpg, {child}, signal.SIGKILL)
    while True:
        for pid, ended in reap_all():
            if pid == child:
                status = ended
            elif pid in spared:
                note(pid, ended)
        mine = [pid for pid in children(os.getpid()) or [] if pid not in spared]
        if not mine or time.monotonic() > until:
            return int(signal.SIGKILL) if status is None else status
        stopped: set[int] = set()
        while _stop_below(stopped, spared):
            continue
        _kill_all(os.kill, stopped, signal.SIGKILL)
        select.select([], [], [], pause)
        pause = min(pause * 2, 0.02)


def _stop_below(stopped: set[int], spared: "Container[int]" = ()) -> bool:
    """Stop what is below this process, parents before children, and add it to `stopped`; say whether it was more."""
    before = len(stopped)
    found = children(os.getpid())
    waiting = None if found is None else [pid for pid in found if pid not in spared]
    if waiting is None:  # a kernel that does not tell
        new = set(descendants(os.getpid())) - stopped
        _kill_all(os.kill, new, signal.SIGSTOP)
        stopped |= new
        return len(stopped) > before
    while waiting:
        pid = waiting.pop()
        if pid not in stopped:
            _kill_all(os.kill, {pid}, signal.SIGSTOP)
            stopped.add(pid)
        waiting.extend(children(pid) or [])
    return len(stopped) > before


def children(pid: int) -> list[int] | None:
    """Return the children of a process; None where the kernel does not tell."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found.extend(int(word) for word in file.read().split())
    except FileNotFoundError:
        return None if pid == os.getpid() else found
    except ProcessLookupError:
        return found
    return found


def _kill_all(kill: "Callable[[int, int], None]", targets: set[int], number: int) -> None:
    for target in targets:
        try:
            kill(target, number)
        except (ProcessLookupError, PermissionError):
            continue


def marked(mark: str) -> list[int]:
    """Return the processes that carry the mark of an attempt in their environment, where that can be seen."""
    wanted = f"{MARK}={mark}".encode()
    found: list[int] = []
    if not os.path.isdir("/proc/self"):
        return found
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as file:
                if wanted in file.read().split(b"\0"):
                    found.append(int(name))
        except OSError:
            continue
    return found
