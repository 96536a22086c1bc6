"""A warm process that forks a supervisor per attempt: an interpreter started anew would cost 20 ms each time.

Started by the executor as a daemon, found again by the next server through its socket, gone by itself when
the data directory is or when nobody talked to it for an hour. It never reads a request: the forked child does,
so that secrets are only where the job is.

    python -I -S -c "..." <data_dir> <socket name> <farewell>     (see executors/launching.py)

The farewell is Python to run when the data directory has vanished: what a server that was killed left on the
machine has nobody else to take it away.
"""

import gc
import os
import select
import signal
import socket
import sys
import time

from runstead.node import cgroups, daemons, framing, rundir, supervise, syscalls
from runstead.node.ahead import Ahead, NotMade, await_request
from runstead.node.hosting import host, sow
from runstead.node.inside import agent
from runstead.node.request import ENGINE, Request
from runstead.node.seed import Seed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# In the node directory: {"isolation", "cgroups"} of the jobs to come, for supervisors prepared beforehand.
SPARES = "spares.json"

_IDLE_SECONDS = 3600.0
_LOOK_SECONDS = 5.0
_BACKLOG = 1024
_SETTLE_DOWN_SECONDS = 0.02  # without new requests, before a spare supervisor is made


def main(data_dir: str, name: str, farewell: str) -> None:
    """Become a daemon that listens on `name` in the node directory; return when it does, or one did already."""
    node = os.path.join(data_dir, "node")
    found = daemons.become(node, name, _BACKLOG)
    if found is None:
        return
    listener, folder, lock = found
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
    spare: Spare | None = None
    while True:
        if not poll.poll((_LOOK_SECONDS if spare is not None else _SETTLE_DOWN_SECONDS) * 1000):
            if time.monotonic() - last > _IDLE_SECONDS or not daemons.is_same(node, identity):
                return
            if spare is None or spare.stamp != _stamp(node):
                spare = Spare(node) if spare is None else None
                if spare is not None and spare.pid == 0:
                    listener.close()
                    os.close(folder)
                    os.close(lock)  # else a supervisor would hold it, and no other launcher could follow
                    _leave(lambda mine=spare: _wait_for_work(mine, data_dir))
            continue
        last = time.monotonic()
        connection, _ = listener.accept()
        if spare is not None and spare.stamp == _stamp(node):
            spare.take(connection)
            connection.close()
            spare = None
            continue
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
        os.close(lock)
        if spare is not None:
            spare.line.close()
        _become_supervisor()
        _leave(lambda taken=connection: _handle(taken, data_dir, None))


class Spare:
    """A supervisor that was forked before it is needed. Like fork, it comes back twice: `pid` is 0 in the child."""

    def __init__(self, node: str) -> None:
        self.stamp = _stamp(node)
        self.line, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            self.line.close()
            self.line = theirs
        else:
            theirs.close()

    def take(self, connection: socket.socket) -> None:
        """Hand a connection over; should the spare be dead, its caller sees it closed and asks again."""
        try:
            socket.send_fds(self.line, [b"C"], [connection.fileno()])
        except OSError:
            pass
        self.line.close()


def _stamp(node: str) -> int:
    """Return what changes when spares have to be made otherwise."""
    try:
        return os.stat(os.path.join(node, SPARES)).st_mtime_ns
    except OSError:
        return 0


def _leave(work: "Callable[[], None]") -> None:
    """Do the child's work, and never return to the launcher's."""
    try:
        work()
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        os._exit(1)
    os._exit(0)


def _wait_for_work(spare: Spare, data_dir: str) -> None:
    _become_supervisor()
    ground = rundir.read_json(os.path.join(data_dir, "node", SPARES))
    seed: Seed | None = None
    if ground is not None and ground["isolation"] not in ("none", ENGINE):
        try:
            seed = Seed(ground["isolation"], ground["cgroups"], f"{cgroups.SPARE}{os.getpid()}")
        except OSError:
            return  # half of it may be done; another supervisor will try again, and tell why
    word, fds, _, _ = socket.recv_fds(spare.line, 1, 1)
    if not word:  # the launcher is gone
        if seed is not None:
            seed.discard()
        return
    spare.line.close()
    with socket.socket(fileno=fds[0]) as connection:
        _handle(connection, data_dir, seed)


def _become_supervisor() -> None:
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.umask(0o022)
    daemons.protect()


def _handle(connection: socket.socket, data_dir: str, seed: Seed | None) -> None:
    message = framing.receive(connection)
    if message is not None and message.get("op") in ("start", "prepare"):
        request = Request.from_message(message)
        if seed is None or (request.isolation, request.cgroups) == (seed.isolation, seed.places):
            if message["op"] == "start":
                _start(request, connection, data_dir, seed)
            else:
                _prepare(request, connection, data_dir, seed)
            return
        connection.sendall(framing.encode({"ok": False, "again": True, "error": "prepared for other settings"}))
    if seed is not None:
        seed.discard()
    if message is None or message.get("op") in ("start", "prepare"):
        return
    if message.get("op") == "leave":
        os.kill(os.getppid(), signal.SIGTERM)
    connection.sendall(framing.encode({"ok": True}))
    if message.get("op") == "host":
        seeds = sow(message["isolation"], message["cgroups"], message["expected"])
        host(connection, lambda one, seed: _start_beside_others(one, data_dir, seed), seeds)


def _start_beside_others(connection: socket.socket, data_dir: str, seed: Seed | None) -> None:
    message = framing.receive(connection)
    if message is not None:
        _start(Request.from_message(message), connection, data_dir, seed, shared=True)
    elif seed is not None:
        seed.discard()


def _prepare(request: Request, connection: socket.socket, data_dir: str, seed: Seed | None) -> None:
    """Make a container ahead of its job, and start the job that comes for it."""
    try:
        seed = seed or Seed(request.isolation, request.cgroups, f"{cgroups.SPARE}{os.getpid()}")
        try:
            Ahead(request, data_dir, seed)
        except BaseException:
            seed.discard()
            raise
    except (NotMade, OSError) as error:
        connection.sendall(framing.encode({"ok": False, "error": str(error)}))
        return
    connection.sendall(framing.encode({"ok": True}))
    message = await_request(connection, seed)
    if message is None:
        seed.discard()
        return
    _start(Request.from_message(message), connection, data_dir, seed)


def _start(
    request: Request, connection: socket.socket, data_dir: str, seed: Seed | None, *, shared: bool = False
) -> None:
    parent = rundir.attempts_path(data_dir)
    name = rundir.attempt_name(request.job_id, request.attempt)
    path = os.path.join(parent, name)
    facts = {
        "version": 1,
        "job_id": request.job_id,
        "attempt": request.attempt,
        "namespace": request.namespace,
        "isolation": request.isolation,
        "network": request.network,
        "address": request.address,
        "cgroups": request.cgroups,
        "gpu_ids": request.gpu_ids,
        "group": name if seed is None else seed.name,
        "supervisor": os.getpid(),
        "shared": shared,  # it has other attempts beside this one
        "inside": agent.VERSION,
        "divided": request.divided,
    }
    lock = rundir.create(parent, name, facts)
    if lock is None:
        if seed is not None:
            seed.discard()
        rundir.await_settled(path)
        connection.sendall(framing.encode({"ok": True, "existing": True}))
        return
    kind = supervise.Supervisor
    if request.engine is not None:
        # Only here: what it needs to speak HTTP would be in the memory of every other supervisor.
        from runstead.node.engine_supervisor import EngineSupervisor

        kind = EngineSupervisor
    try:
        supervisor = kind(request, data_dir, path, lock, seed, shared=shared)
        try:
            supervisor.run(connection)
        finally:
            supervisor.close()
    finally:
        os.close(lock)
