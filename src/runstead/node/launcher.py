"""A warm process that forks a supervisor per attempt: an interpreter started anew would cost 20 ms each time.

Started by the executor as a daemon, found again by the next server through its socket, gone by itself when
the data directory is or when nobody talked to it for an hour. It never reads a request: the forked child does,
so that secrets are only where the job is.

    python -I -S -c "..." <data_dir> <socket name> <farewell>     (see executors/launching.py)

The farewell is Python to run when the data directory has vanished: what a server that was killed left on the
machine has nobody else to take it away.
"""

import fcntl
import gc
import os
import select
import signal
import socket
import sys
import time

from runstead.node import framing, rundir, supervise, syscalls
from runstead.node.request import Request

_IDLE_SECONDS = 3600.0
_LOOK_SECONDS = 5.0
_SETTLE_SECONDS = 30.0  # how long a starter may take, for another one who waits for it


def main(data_dir: str, name: str, farewell: str) -> None:
    """Become a daemon that listens on `name` in the node directory; return when it does, or one did already."""
    node = os.path.join(data_dir, "node")
    lock = os.open(os.path.join(node, name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    folder = os.open(node, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass
    os.umask(0o077)
    listener.bind(framing.socket_address(folder, node, name))
    listener.listen(1024)
    if os.fork() != 0:
        os._exit(0)  # whoever started us knows now that there is a listener
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.collect()
    gc.freeze()
    gc.disable()
    _serve(listener, data_dir, folder, lock)
    if syscalls.LINUX and not os.path.isdir(node):
        os.posix_spawn(sys.executable, [sys.executable, "-I", "-c", farewell], os.environ)


def _serve(listener: socket.socket, data_dir: str, folder: int, lock: int) -> None:
    node = os.path.join(data_dir, "node")
    identity = os.fstat(folder)
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    last = time.monotonic()
    while True:
        if not poll.poll(_LOOK_SECONDS * 1000):
            if time.monotonic() - last > _IDLE_SECONDS or not _same(node, identity):
                return
            continue
        last = time.monotonic()
        connection, _ = listener.accept()
        try:
            child = os.fork()
        except OSError as error:  # no memory, too many processes: the other side tries again
            connection.sendall(framing.encode({"ok": False, "error": f"cannot fork: {error.strerror}"}))
            connection.close()
            continue
        if child:
            connection.close()
            continue
        listener.close()
        os.close(folder)
        os.close(lock)  # else a supervisor would hold it, and no other launcher could follow this one
        try:
            _handle(connection, data_dir)
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
            os._exit(1)
        os._exit(0)


def _same(path: str, identity: os.stat_result) -> bool:
    try:
        now = os.stat(path)
    except OSError:
        return False
    return (now.st_dev, now.st_ino) == (identity.st_dev, identity.st_ino)


def _handle(connection: socket.socket, data_dir: str) -> None:
    launcher = os.getppid()
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.umask(0o022)
    message = framing.receive(connection)
    if message is None:
        return
    if message.get("op") == "leave":
        os.kill(launcher, signal.SIGTERM)
        connection.sendall(framing.encode({"ok": True}))
    elif message.get("op") == "hello":
        connection.sendall(framing.encode({"ok": True, "pid": launcher}))
    else:
        _start(Request.from_message(message), connection, data_dir)


def _start(request: Request, connection: socket.socket, data_dir: str) -> None:
    parent = rundir.attempts_path(data_dir)
    name = rundir.attempt_name(request.job_id, request.attempt)
    path = os.path.join(parent, name)
    _protect()
    facts = {
        "version": 1,
        "job_id": request.job_id,
        "attempt": request.attempt,
        "namespace": request.namespace,
        "isolation": request.isolation,
        "network": request.network,
        "address": request.address,
        "cgroups": request.cgroups,
        "supervisor": os.getpid(),
    }
    lock = rundir.create(parent, name, facts)
    if lock is None:
        _await_settled(path)
        connection.sendall(framing.encode({"ok": True, "existing": True}))
        return
    supervise.Supervisor(request, data_dir, path, lock).run(connection)


def _await_settled(path: str) -> None:
    """Another supervisor has this attempt: wait until its command was executed, or was not."""
    until = time.monotonic() + _SETTLE_SECONDS
    while time.monotonic() < until and rundir.is_alive(path):
        if os.path.exists(f"{path}/{rundir.STARTED}") or os.path.exists(f"{path}/{rundir.EXIT}"):
            return
        time.sleep(0.002)


def _protect() -> None:
    """Ask the kernel to kill others first when the machine is out of memory; only the privileged may."""
    if syscalls.LINUX:
        try:
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("-900")
        except OSError:
            pass
