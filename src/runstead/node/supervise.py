"""Stands beside one attempt from its start to its end: output, deadline, stop requests, the last word.

A supervisor is forked by the launcher, lives in the machine's own namespaces, and dies alone: neither the
server nor the launcher is needed for the job to go on. What it does not survive itself (SIGKILL) its job does
not survive either, and the attempt is then found without an exit record.
"""

import errno
import json
import os
import select
import signal
import socket
import time

from runstead.node import cgroups, command, environments, framing, places, processes, rundir, syscalls, venv
from runstead.node.ahead import Ahead, Site, first_order
from runstead.node.compartments.attempt import Attempt
from runstead.node.compartments.divider import Divider
from runstead.node.disks import Disk
from runstead.node.inside.agent import Agent, listen
from runstead.node.inside.ground import Ground
from runstead.node.kept import Kept
from runstead.node.logwriter import READ_BYTES, LogWriter
from runstead.node.request import NO_NETWORK, Container, Request
from runstead.node.roots import hosted, machine
from runstead.node.roots.image import Foundation
from runstead.node.seed import Seed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# A follower must see a line within 20 ms: the server is told of new lines this often at most.
_WAKE_SECONDS = 0.003
# Output in small pieces is gathered this long: it costs a fifth of the processor time.
_GATHER_SECONDS = 0.001
_GATHER_BELOW = 4096
_PIPE_BYTES = 1 << 20
_KILL_SECONDS = 2.0  # how long process 1 may take to do what it was told, before it is killed itself


class Waker:
    """Tells the server that something changed. Datagrams to a named socket: nobody has to be there."""

    def __init__(self, folder: str, job_id: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._address = framing.socket_address(self._folder, folder, "wake")
        self._job_id = job_id.encode()

    def close(self) -> None:
        """Let go of it."""
        self._socket.close()
        os.close(self._folder)

    def tell(self, kind: bytes) -> bool:
        """Send one wake-up, b"l" for lines or b"j" for the job; False when the server is behind with reading."""
        try:
            self._socket.sendto(kind + self._job_id, self._address)
        except OSError as error:
            return error.errno not in (errno.EAGAIN, errno.ENOBUFS)
        return True


class NotStarted(Exception):
    """The command never ran."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code


class Supervisor:
    """One attempt."""

    def __init__(
        self, request: Request, data_dir: str, path: str, lock: int, seed: Seed | None, *, shared: bool = False
    ) -> None:
        """`shared`: other attempts have the same supervisor, each in a thread of its own."""
        self._request = request
        self._shared = shared
        self._data_dir = data_dir
        self._path = path
        self._lock = lock
        self._seed = seed  # process 1, where one was prepared
        self._waker = Waker(os.path.join(data_dir, "node"), request.job_id)
        self._log = LogWriter(request.log_path, request.log_not_before, request.log_limit_bytes)
        name = rundir.attempt_name(request.job_id, request.attempt)
        self._group = seed.group if seed is not None else cgroups.Group(request.cgroups, name)
        self._control = self._bind_control()
        self._child = 0  # process 1 of the job, or in plain mode the command
        self._talk: socket.socket | None = None  # with process 1
        self._output = -1
        self._disk: Disk | None = None
        self._children = -1  # readable when a child ended; plain mode only, as the two below
        self._listener: socket.socket | None = None
        self._ground: Ground | None = None
        self._agent: Agent | None = None  # elsewhere it is part of process 1
        self._divider: Divider | None = None
        self._kept: list[Kept] = []  # what the attempt may leave to the next of its owner
        self._started_at: float | None = None
        self._deadline = 0.0  # of the whole attempt; monotonic, as are all below
        self._kill_at: float | None = None  # when SIGTERM has had its time
        self._give_up_at: float | None = None  # when process 1 has had its time
        self._wake_at: float | None = None  # when the server may be told of new lines again
        self._reason: str | None = None  # "timeout" or "stopped", once we asked the job to end
        self._status: int | None = None
        self._cut_off = False  # process 1 died before the command did

    def run(self, connection: socket.socket) -> None:
        """Start the command, tell who asked, and stay until the end."""
        for line in self._request.preamble:
            self._log.say(line)
        self._tell_of_lines()
        try:
            self._start()
        except NotStarted as error:
            self._finish_unstarted(error.message, error.code)
        except OSError as error:
            self._finish_unstarted(f"the job's surroundings could not be made: {error}", None)
        else:
            started = time.time()
            self._started_at = started
            self._request.environment = {}  # the job has it; nobody else needs its secrets any more
            self._deadline = time.monotonic() + self._request.timeout_seconds
            disk = self._disk.fd if self._disk is not None else None
            said = {"started_at": started, "supervisor": os.getpid(), "disk": disk}
            rundir.write_json(os.path.join(self._path, rundir.STARTED), said)
            _answer(connection)
            self._attend()
            self._finish()
            return
        _answer(connection)

    def close(self) -> None:
        """Let go of what is open, in a process that may go on with other attempts."""
        if self._talk is not None and self._child and self._status is None:  # by a fault of ours
            self._end_first()
        self._waker.close()
        self._log.close()
        self._control.close()
        if self._output >= 0:
            os.close(self._output)
        if self._seed is not None:
            self._seed.close()

    # Start

    def _bind_control(self) -> socket.socket:
        control = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        folder = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        control.bind(framing.socket_address(folder, self._path, rundir.CONTROL))
        os.close(folder)
        control.setblocking(False)
        return control

    def _start(self) -> None:
        request = self._request
        private = request.isolation == "root" and (request.container is None or request.container.private_ids)
        user = places.first_id(self._data_dir, request.namespace) if private else None
        self._output, writer = _pipe(user)
        try:
            self._group.create(
                cpu_millicores=request.cpu_millicores, memory_bytes=request.memory_bytes, pids_limit=request.pids_limit
            )
            if request.isolation == "none":
                self._start_plain(places.prepare_shared(self._data_dir, request.namespace, user), writer)
            else:
                self._take_kept(user)
                self._start_isolated(writer)
                if request.isolation == "root" and request.divided:
                    self._divider = Divider(Attempt(self._path, request, self._group, self._child, user))
        finally:
            os.close(writer)

    def _start_isolated(self, writer: int) -> None:
        request = self._request
        if self._seed is None:
            name = rundir.attempt_name(request.job_id, request.attempt)
            self._seed = Seed(request.isolation, request.cgroups, name, self._lock)
        self._talk, self._child = self._seed.talk, self._seed.pid
        files = os.path.join(self._path, rundir.FILES)
        made = self._seed.ahead if isinstance(self._seed.ahead, Ahead) else None
        if made is not None:
            os.rename(made.folder, files)
        site = made.site if made is not None else Site(request, self._data_dir, self._seed)
        self._disk = site.disk
        fds = {"output": writer, "inside": listen(self._path).detach(), **site.fds}
        try:
            order = first_order(request, site, files, os.path.join(self._data_dir, "node"), self._seed)
            if self._shared and request.container is not None and request.network != NO_NETWORK:
                fds["root"] = self._make_root(request.container, order, fds)
            self._seed.order({**order, "environment": self._environment(), "handed": list(fds)}, list(fds.values()))
        finally:
            os.close(fds["inside"])
            if "root" in fds:
                os.close(fds["root"])
            site.close_handed()
        self._expect(b"R")

    def _make_root(self, container: Container, order: "dict[str, Any]", fds: dict[str, int]) -> int:
        disk = os.dup(fds.pop("disk")) if "disk" in fds else None
        of_order = [order[name] for name in ("folder", "mount_point", "shared", "groups", "owner")]
        base = Foundation(*of_order, users=fds.get("users"), disk=disk)
        return hosted.make(self._request, container, base, fds.get("network"))

    def _take_kept(self, user: int | None) -> None:
        """Give the attempt folders that wait for it."""
        view = self._request.view
        if view is None:
            return
        owner = places.owner_path(self._data_dir, self._request.namespace)
        shared = places.prepare_shared(self._data_dir, self._request.namespace, user)
        name = rundir.attempt_name(self._request.job_id, self._request.attempt)
        parts = (view.python, view.python_version, view.pip_paths)
        pool = f"{owner}/kept/venv-{user}-{venv.kind(*parts)}"
        folders = f"{owner}/kept/folders-{user}-{machine.folders_kind(view)}"
        self._kept = [
            Kept(pool, f"{shared}/venvs", name, lambda path: venv.make(path, *parts, owner=user)),
            Kept(folders, self._path, rundir.FILES, lambda path: machine.make_folders(path, view, user)),
        ]
        for one in self._kept:
            try:
                one.take()
            except OSError:
                pass  # process 1 makes what is not there

    def _expect(self, word: bytes) -> None:
        assert self._talk is not None
        answer = _said(self._talk)
        if answer == word:
            return
        if answer[:1] == b"F":
            report = json.loads(answer[1:])
            raise NotStarted(str(report["message"]), report["code"])
        raise NotStarted("the job's first process died before the command was executed")

    def _start_plain(self, shared: str, writer: int) -> None:
        request = self._request
        own = os.path.join(self._path, rundir.FILES)
        for name in ("", "home", "tmp", "workspace"):
            os.mkdir(os.path.join(own, name), 0o700)
        assert request.view is not None
        name = rundir.attempt_name(request.job_id, request.attempt)
        environment = environments.plain(request, request.view, f"{shared}/venvs/{name}", shared, own)
        environment[processes.MARK] = name
        venv.make(f"{shared}/venvs/{name}", request.view.python, request.view.python_version, request.view.pip_paths)
        if syscalls.LINUX:
            syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
            syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        self._children = processes.watch_children()
        self._listener = listen(self._path)
        self._ground = Ground(
            environment=environment,
            folder=f"{own}/workspace",
            own_network=False,
            own_ids=False,
            limits=self._group,
        )
        if not request.argv:
            return
        status, report = os.pipe()
        go, ready = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            if syscalls.LINUX:
                syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.read(go, 1) == b"G":
                command.execute(request.argv, environment, f"{own}/workspace", writer, report)
            os._exit(1)
        os.close(report)
        self._group.enter(self._child)
        os.write(ready, b"G")
        os.close(go)
        os.close(ready)
        text = b""
        while part := os.read(status, 65536):
            text += part
        os.close(status)
        if text:
            os.waitpid(self._child, 0)
            failure = json.loads(text)
            raise NotStarted(str(failure["message"]), failure["code"])

    def _environment(self) -> dict[str, str]:
        """Return the environment of an isolated command, but for what only its own root can tell."""
        request = self._request
        if request.container is not None:
            return environments.contained(request, request.container)
        assert request.view is not None
        name = rundir.attempt_name(request.job_id, request.attempt)
        return environments.isolated(request, request.view, f"{places.SHARED}/venvs/{name}")

    # While it runs

    def _attend(self) -> None:
        """Copy output, keep the deadline, do as asked, until the command has ended and all of it is gone."""
        poll = select.poll()
        poll.register(self._output, select.POLLIN)
        poll.register(self._control, select.POLLIN)
        if self._talk is not None:
            poll.register(self._talk, select.POLLIN)
            if self._divider is not None:
                self._divider.register(poll)
        else:
            assert self._ground is not None
            assert self._listener is not None
            poll.register(self._children, select.POLLIN)
            self._agent = Agent(self._listener, self._ground, poll)
        output = self._output
        while self._status is None:
            for fd, event in poll.poll(self._wait_millis()):
                if fd == output:
                    if not self._copy():
                        poll.unregister(output)
                elif fd == self._control.fileno():
                    self._obey()
                elif self._agent is not None and fd != self._children:
                    self._agent.handle(fd, event)
                elif self._divider is None or not self._divider.handle(fd):
                    self._take_status()
            self._keep_time()

    def _wait_millis(self) -> int:
        moments = (self._deadline if self._reason is None else None, self._kill_at, self._give_up_at, self._wake_at)
        nearest = min(moment for moment in (*moments, time.monotonic() + 3600) if moment is not None)
        return max(int((nearest - time.monotonic()) * 1000) + 1, 0)

    def _copy(self) -> bool:
        """Take what is in the pipe; False at its end."""
        block = os.read(self._output, READ_BYTES)
        if not block:
            return False
        self._log.feed(block)
        self._tell_of_lines()
        if len(block) < _GATHER_BELOW:
            time.sleep(_GATHER_SECONDS)
        return True

    def _tell_of_lines(self) -> None:
        if not self._log.grown:
            return
        now = time.monotonic()
        if self._wake_at is not None and now < self._wake_at:
            return
        if self._waker.tell(b"l"):
            self._log.grown = False
        self._wake_at = now + _WAKE_SECONDS

    def _obey(self) -> None:
        try:
            order = json.loads(self._control.recv(4096))
        except (OSError, ValueError):
            return
        now = time.monotonic()
        if order.get("op") == "kill":
            self._end("stopped", now)
        elif order.get("op") == "stop":
            self._end("stopped", now + float(order.get("grace", 0)))

    def _end(self, reason: str, kill_at: float) -> None:
        """Ask all processes to end now and make them end then; a second request can only bring that nearer."""
        if self._reason is None:
            self._reason = reason
            if kill_at > time.monotonic():
                self._signal(signal.SIGTERM)
        if self._give_up_at is None and (self._kill_at is None or kill_at < self._kill_at):
            self._kill_at = kill_at

    def _keep_time(self) -> None:
        now = time.monotonic()
        if self._wake_at is not None and now >= self._wake_at:
            self._wake_at = None
            self._tell_of_lines()
        if self._reason is None and now >= self._deadline:
            self._end("timeout", now + self._request.grace_seconds)
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = None
            self._give_up_at = now + _KILL_SECONDS
            self._signal(signal.SIGKILL)
        if self._give_up_at is not None and now >= self._give_up_at:
            self._give_up_at = now + _KILL_SECONDS
            self._insist()

    def _signal(self, number: int) -> None:
        if self._agent is not None:
            if not self._child:
                self._agent.finish()
            processes.signal_tree(self._child, number)
            self._see_end(number)
            return
        assert self._talk is not None
        try:
            self._talk.send(b"T" if number == signal.SIGTERM else b"K")
        except OSError:
            return  # it is ending already

    def _insist(self) -> None:
        """Kill once more what was told to end and did not."""
        if self._agent is None:
            os.kill(self._child, signal.SIGKILL)
        else:
            self._signal(signal.SIGKILL)

    def _take_status(self) -> None:
        """The command ended: note how, and see to it that nothing of it goes on."""
        if self._agent is not None:
            os.read(self._children, 512)
            for pid, status in processes.reap_all():
                if pid == self._child:
                    self._status = status
                else:
                    self._agent.reaped(pid)
            self._see_end(signal.SIGTERM)
            if self._status is not None:
                self._group.kill()
                processes.end_descendants()
            return
        assert self._talk is not None
        word = _said(self._talk)
        if self._divider is not None:
            self._divider.finish()
        _, killed = os.waitpid(self._child, 0)  # returns when the whole namespace is empty
        self._status = int(word[1:]) if word[:1] == b"X" else killed
        self._cut_off = word[:1] != b"X"

    def _see_end(self, number: int) -> None:
        """An attempt without a command ends when it was asked to and nobody is left."""
        if not self._child and self._reason is not None and processes.is_childless():
            self._status = number

    # End

    def _finish(self) -> None:
        self._drain()
        self._log.finish()
        status = self._status or 0
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        code = 128 + number if number is not None else os.WEXITSTATUS(status)
        reason, message = self._reason or "exited", None
        if reason == "exited" and code != 0 and (self._group.memory_kills() or self._was_killed_below(number)):
            reason = "oom"
            message = f"the job used more than its {size_text(self._request.memory_bytes)} of memory and was killed"
        elif reason == "exited" and self._cut_off:
            message = "the job was killed from outside, by this machine's administrator or for lack of memory"
        self._record(reason, code, number, message)

    def _was_killed_below(self, number: int | None) -> bool:
        """Say whether memory is why the command was killed, where a runtime put it into a control group of its own."""
        container = self._request.container
        return bool(container and container.runtime and number == signal.SIGKILL and self._group.was_full())

    def _finish_unstarted(self, message: str, code: int | None) -> None:
        if self._child:
            self._end_first()
        self._log.say(message)
        self._record("start_failed", code, None, message)

    def _end_first(self) -> None:
        processes.end_child(self._child)
        self._child = 0

    def _drain(self) -> None:
        """Take what is still in the pipe. All writers are dead, or hold it where they cannot be seen."""
        os.set_blocking(self._output, False)
        for _ in range(_PIPE_BYTES // 4096):
            try:
                block = os.read(self._output, READ_BYTES)
            except BlockingIOError:
                return
            if not block:
                return
            self._log.feed(block)

    def _record(self, reason: str, code: int | None, number: int | None, message: str | None) -> None:
        if self._log.lost_because is not None:
            lost = f"{self._log.lost_bytes} bytes of output are missing in the log: {self._log.lost_because}"
            message = lost if message is None else f"{message}; {lost}"
        if self._disk is not None:
            self._disk.discard()
        for _ in range(50):
            if self._group.remove():
                break
            time.sleep(0.002)
        for one in self._kept:
            try:
                one.give_back()
            except OSError:
                pass  # then it is deleted with the rest
        record = {
            "version": 1,
            "reason": reason,
            "exit_code": code,
            "signal": number,
            "started_at": self._started_at,
            "finished_at": time.time(),
            "message": message,
        }
        while True:
            try:
                rundir.write_json(os.path.join(self._path, rundir.EXIT), record, durable=True)
                break
            except FileNotFoundError:
                return  # removed under our feet
            except OSError:  # a full disk: whoever frees it gets the record
                time.sleep(1)
        for _ in range(100):
            if self._waker.tell(b"j"):
                return
            time.sleep(0.002)


def _said(by: socket.socket) -> bytes:
    """Return what process 1 said; nothing when it died, whether or not it had read what it was told."""
    try:
        return by.recv(65536)
    except ConnectionResetError:
        return b""


def _answer(connection: socket.socket) -> None:
    try:
        connection.sendall(framing.encode({"ok": True}))
    except OSError:
        pass  # whoever asked is gone; the next one finds the directory
    connection.close()


def _pipe(user: int | None) -> tuple[int, int]:
    reader, writer = os.pipe()
    if user is not None:
        os.fchown(writer, user, user)  # so that the job can open /dev/stdout
    if syscalls.LINUX:
        import fcntl

        try:
            fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        except OSError:
            pass  # the user's share of pipe memory is used up: the usual size will do
    return reader, writer


def size_text(count: int) -> str:
    """Return a number of bytes for people."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= factor:
            return f"{count / factor:.4g} {unit}"
    return f"{count} bytes"
