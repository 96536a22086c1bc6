"""Stands beside an attempt that a container engine of the machine runs.

The log, the deadline, stop requests and the last word are those of every supervisor; what differs is that the
processes are the engine's, and that all that is done to them goes through its socket.
"""

import json
import os
import select
import signal
import socket
import time

from runstead.node import pause, processes, rundir
from runstead.node.engine import ATTEMPT, INSTANCE, JOB, STATE, VARIABLES, Engine, EngineError, Frames
from runstead.node.inside.agent import Agent, listen
from runstead.node.inside.entrance import Entrance
from runstead.node.inside.ground import Ground
from runstead.node.logformat import LINE_LIMIT
from runstead.node.logwriter import READ_BYTES
from runstead.node.memory_events import MemoryEvents
from runstead.node.request import NO_NETWORK, EngineContainer, Request
from runstead.node.seed import Seed
from runstead.node.supervise import NotStarted, Supervisor, size_text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_STATE_BYTES = 16 << 20
_RETRY_SECONDS = 1.0  # while the engine does not answer, as when it is restarted
_SETTLE_SECONDS = 0.05
_DRAIN_SECONDS = 2.0  # for what the engine has not passed on yet when the container has ended
_REMOVE_SECONDS = 2.5  # less than a remover waits for us
_ALONE_SECONDS = 0.05  # how often to look who is left when an attempt without a command is to end
_ENDED = ("exited", "stopped", "dead", "removing")
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126
# How the engines' inits say that there is no such command; they end with the code of a shell then.
_INIT_FAILURES = (b"[FATAL tini", b"ERROR (catatonit")

# Where nobody else is let in: asks all processes to end and waits until there are none but the first. Whoever attended
# to the last of them has a moment to learn how it ended.
_FINISH = r"""
kill -TERM -1
while :; do
  rs_left=
  for rs_pid in /proc/[0-9]*; do
    case ${rs_pid#/proc/} in 1 | $$) ;; *) rs_left=1 ;; esac
  done
  [ "$rs_left" ] || break
  sleep 0.05 2>/dev/null || sleep 1
done
sleep 0.3 2>/dev/null || sleep 1
"""


class EngineSupervisor(Supervisor):
    """One attempt in a container of an engine."""

    def __init__(
        self, request: Request, data_dir: str, path: str, lock: int, seed: Seed | None, *, shared: bool = False
    ) -> None:
        super().__init__(request, data_dir, path, lock, seed, shared=shared)
        assert request.engine is not None
        self._asked: EngineContainer = request.engine
        self._engine = Engine(self._asked.socket)
        self._frames = Frames()
        self._attached: socket.socket | None = None
        self._waiting: socket.socket | None = None
        self._poll = select.poll()
        self._attach_at: float | None = None  # when to look for more output, which was cut off
        self._attach_pause = _RETRY_SECONDS
        self._look_at: float | None = None  # when to ask the engine again
        self._state: dict[str, Any] | None = None  # as the engine says, once the container has ended
        self._first = b""  # of the output
        self._tails: dict[int, bytes] = {}  # of each stream: a line whose end has not come yet
        self._entrance: Entrance | None = None
        self._memory: MemoryEvents | None = None
        self._finishing: socket.socket | None = None  # closed when all but the first process have ended
        self._dead: list[int] = []  # children that were buried
        self._alone_at: float | None = None  # when to look whether somebody is left
        self._emptied = False  # it was asked to end, and all but its first processes have

    # Start

    def _start(self) -> None:
        try:
            self._create()
            if not self._request.argv:
                self._put_pause()
            self._attached = self._engine.attach(self._asked.name)
            try:
                self._engine.call("POST", f"/containers/{self._asked.name}/start")
            except EngineError as error:
                missing = "not found" in str(error) or "no such file" in str(error).lower()
                raise NotStarted(str(error), _NOT_FOUND if missing else _NOT_EXECUTABLE) from error
            if self._asked.entered:
                self._open_entrance()
        except EngineError as error:
            raise NotStarted(f"the engine made no container: {error}") from error

    def _put_pause(self) -> None:
        program = pause.program(self._asked.machine)
        if program is None:
            raise NotStarted(f"nothing can stay in a container without a command on {self._asked.machine}")
        self._engine.put_program(self._asked.name, pause.PATH, program)

    def _open_entrance(self) -> None:
        """Let the server into the container, which is one of this machine's processes."""
        found = self._engine.call("GET", f"/containers/{self._asked.name}/json")
        pid, config = int(found["State"].get("Pid") or 0), found["Config"]
        try:
            if not pid or str(found["Id"]) not in _text(f"/proc/{pid}/cgroup"):
                raise ProcessLookupError
            self._memory = MemoryEvents(pid, self._poll)
            self._entrance = Entrance(pid, str(config.get("User") or ""))
        except OSError:  # it has ended already, or its processes are another machine's
            return
        lines: list[str] = config.get("Env") or []
        pairs = (line.partition("=") for line in lines)
        self._ground = Ground(
            environment={name: value for name, _, value in pairs},
            folder=config.get("WorkingDir") or "/",
            own_network=self._entrance.own_network,
            own_ids=True,
            entrance=self._entrance,
        )
        self._children = processes.watch_children()
        signal.signal(signal.SIGCHLD, self._bury)
        self._poll.register(self._children, select.POLLIN)
        self._agent = Agent(listen(self._path), self._ground, self._poll)

    def _bury(self, _number: int, _frame: object) -> None:
        """Take note of children's ends at once: the container's end waits for that, and the engine for the container's.

        Also while we wait for the engine.
        """
        self._dead.extend(pid for pid, _ in processes.reap_all())

    def _create(self) -> None:
        if not self._request.argv:
            self._post(self._wanted(init=False))  # what stays there instead is its own init
            return
        body = self._wanted(init=True)
        try:
            self._post(body)
        except EngineError as error:
            if "init" not in str(error):
                raise
            self._log.say(f"runstead: no init process in this container: {error}")
            self._post(self._wanted(init=False))

    def _post(self, body: "dict[str, Any]") -> None:
        query = {"name": self._asked.name}
        try:
            self._engine.call("POST", "/containers/create", query=query, body=body)
        except EngineError as error:
            if error.status != 409 and "already in use" not in str(error):
                raise
            # The directory of this attempt is new, so whatever has its name was left by one that is gone.
            self._engine.remove(self._asked.name)
            self._engine.call("POST", "/containers/create", query=query, body=body)

    def _wanted(self, *, init: bool) -> "dict[str, Any]":
        request, asked = self._request, self._asked
        network = "none" if request.network == NO_NETWORK else asked.network
        host: dict[str, Any] = {
            "Init": init,
            "NetworkMode": network,
            "SecurityOpt": ["no-new-privileges"],
            "CapDrop": ["NET_RAW"],  # jobs on one bridge could listen to each other, and speak as each other
            "LogConfig": {"Type": "none"},  # the log is ours
            "RestartPolicy": {"Name": "no"},
            "ShmSize": asked.shared_memory_bytes,
            "Ulimits": [{"Name": name, "Soft": soft, "Hard": hard} for name, soft, hard in asked.ulimits],
            "Mounts": [
                {"Type": "bind", "Source": source, "Target": target, "ReadOnly": mode == "ro"}
                for source, target, mode in [*request.mounts, *([path, path, "ro"] for path in asked.binds)]
            ],
        }
        host |= asked.gpus
        if (
            not asked.entered
        ):  # in memory: what is known of programs does not belong to the files that a fork begins with
            host["Tmpfs"] = {STATE: f"rw,nosuid,nodev,mode=1777,size={_STATE_BYTES}"}
        if request.memory_bytes:
            host["Memory"] = host["MemorySwap"] = request.memory_bytes
        if request.cpu_millicores:
            host["NanoCpus"] = request.cpu_millicores * 1_000_000
        if request.pids_limit:
            host["PidsLimit"] = request.pids_limit
        environment = {"LANG": "C.UTF-8", **asked.environment, **request.environment}
        return {
            "Image": asked.image,
            "Entrypoint": request.argv[:1] or [pause.PATH],
            "Cmd": request.argv[1:],
            "Env": [f"{name}={value}" for name, value in environment.items()],
            "Labels": {
                INSTANCE: asked.instance,
                JOB: request.job_id,
                ATTEMPT: str(request.attempt),
                VARIABLES: json.dumps(list(environment)),
            },
            "AttachStdout": True,
            "AttachStderr": True,
            "HostConfig": host,
            **({} if network == "host" else {"Hostname": request.job_id}),
        }

    # While it runs

    def _attend(self) -> None:
        self._poll.register(self._control, select.POLLIN)
        if self._attached is not None:
            self._poll.register(self._attached, select.POLLIN)
        self._watch()
        while self._state is None:
            for fd, event in self._poll.poll(self._wait_millis()):
                if fd == self._control.fileno():
                    self._obey()
                elif self._attached is not None and fd == self._attached.fileno():
                    self._take_output()
                elif self._finishing is not None and fd == self._finishing.fileno():
                    self._hear_finish()
                elif self._waiting is not None and fd == self._waiting.fileno():
                    self._hear_end()
                elif self._agent is not None and not (self._memory is not None and self._memory.handle(fd, event)):
                    self._serve(self._agent, fd, event)
            self._keep_time()

    def _serve(self, agent: Agent, fd: int, event: int) -> None:
        if fd != self._children:
            agent.handle(fd, event)
            return
        os.read(fd, 512)
        dead, self._dead = self._dead, []
        for pid in dead:
            agent.reaped(pid)

    def _wait_millis(self) -> int:
        moments = [moment for moment in (self._attach_at, self._look_at, self._alone_at) if moment is not None]
        nearest = int((min(moments) - time.monotonic()) * 1000) + 1 if moments else 3_600_000
        return max(min(super()._wait_millis(), nearest), 0)

    def _keep_time(self) -> None:
        super()._keep_time()
        now = time.monotonic()
        if self._look_at is not None and now >= self._look_at:
            self._look_at = None
            self._look()
        if self._alone_at is not None and now >= self._alone_at:
            self._alone_at = now + _ALONE_SECONDS
            self._emptied = self._emptied or self._is_alone()
            if self._emptied:
                self._kill_container()
        if self._attach_at is not None and now >= self._attach_at and self._state is None:
            self._attach_at = None
            self._look()
            if self._state is None:
                self._attach_again()

    def _watch(self) -> None:
        """Have the engine tell of the end."""
        try:
            self._waiting = self._engine.wait(self._asked.name)
        except OSError:
            self._look_at = time.monotonic() + _RETRY_SECONDS
        else:
            self._poll.register(self._waiting, select.POLLIN)

    def _hear_end(self) -> None:
        """Take what the engine answers: only that it closes the connection says something."""
        assert self._waiting is not None
        try:
            if self._waiting.recv(65536):
                return
        except OSError:
            pass
        self._poll.unregister(self._waiting)
        self._waiting.close()
        self._waiting = None
        self._look()

    def _look(self) -> None:
        try:
            state = self._engine.call("GET", f"/containers/{self._asked.name}/json", seconds=10)["State"]
        except EngineError as error:
            if error.status == 404:
                self._state = {}  # somebody removed it
            else:
                self._look_at = time.monotonic() + _RETRY_SECONDS
        except OSError:
            self._look_at = time.monotonic() + _RETRY_SECONDS
        else:
            if state["Status"] in _ENDED:
                self._state = state
            elif self._waiting is None:
                time.sleep(_SETTLE_SECONDS)  # an engine that answers too early is not asked in a spin
                self._watch()

    def _take_output(self) -> None:
        assert self._attached is not None
        try:
            block = self._attached.recv(READ_BYTES)
        except OSError:
            block = b""
        if block:
            self._feed(block)
            self._tell_of_lines()
            return
        self._poll.unregister(self._attached)
        self._attached.close()
        self._attached = None
        # The end of the output is mostly the job's, and told sooner than that; engines have forgotten to tell that.
        self._look_at = time.monotonic() + _SETTLE_SECONDS
        self._attach_at = time.monotonic() + self._attach_pause

    def _feed(self, block: bytes) -> None:
        """Take output, lines as a whole: the engine mixes what came by two pipes anywhere."""
        for stream, piece in self._frames.feed(block):
            self._first = self._first or piece[:64]
            data = self._tails.get(stream, b"") + piece
            cut = data.rfind(b"\n") + 1
            if cut:
                self._log.feed(data[:cut])
            tail = data[cut:]
            if len(tail) >= LINE_LIMIT:
                self._log.feed(tail[:LINE_LIMIT] + b"\n")
                tail = tail[LINE_LIMIT:]
            self._tails[stream] = tail

    def _feed_tails(self) -> None:
        for tail in self._tails.values():
            if tail:
                self._log.feed(tail + b"\n")
        self._tails.clear()

    def _attach_again(self) -> None:
        """Go on with output after the engine was restarted; a job that closed its output has none, ever rarer asked."""
        try:
            self._attached = self._engine.attach(self._asked.name)
        except (OSError, EngineError):
            self._attach_at = time.monotonic() + self._attach_pause
        else:
            self._frames = Frames()
            self._feed_tails()
            self._poll.register(self._attached, select.POLLIN)
        self._attach_pause = min(self._attach_pause * 2, 60.0)

    def _is_alone(self) -> bool:
        """Say whether nobody is left in a container without a command."""
        if self._entrance is None:
            return True
        return not processes.children(self._entrance.pid) and processes.children(os.getpid()) == []

    def _signal(self, number: int) -> None:
        if self._request.argv or number != signal.SIGTERM:
            self._kill_container(number)
            return
        if not self._asked.entered and self._begin_finish():
            return
        if self._agent is not None and self._entrance is not None:
            self._agent.finish()
            self._entrance.signal_all(number)
        self._alone_at = time.monotonic()

    def _begin_finish(self) -> bool:
        """Have all that runs in a container without a command asked to end, by its own shell."""
        command = {"AttachStdout": True, "AttachStderr": True, "User": "0:0", "Cmd": ["/bin/sh", "-c", _FINISH]}
        try:
            _, self._finishing = self._engine.execute(self._asked.name, command)
        except (OSError, EngineError):
            return False
        self._poll.register(self._finishing, select.POLLIN)
        return True

    def _hear_finish(self) -> None:
        assert self._finishing is not None
        try:
            if self._finishing.recv(READ_BYTES):
                return
        except OSError:
            pass
        self._poll.unregister(self._finishing)
        self._finishing.close()
        self._finishing = None
        self._emptied = True
        self._kill_container()

    def _kill_container(self, number: int = signal.SIGKILL) -> None:
        name = signal.Signals(number).name
        try:
            self._engine.call("POST", f"/containers/{self._asked.name}/kill", query={"signal": name}, seconds=10)
        except (OSError, EngineError):
            return  # it is ending already, or will be told again

    def _insist(self) -> None:
        self._signal(signal.SIGKILL)
        self._look()

    # End

    def _finish(self) -> None:
        if self._agent is not None:
            self._agent.close()
        if self._memory is not None:
            self._memory.look()
        self._drain()
        self._feed_tails()
        state = self._state or {}
        code = int(state.get("ExitCode", 128 + signal.SIGKILL))
        if self._emptied:
            code = 128 + signal.SIGTERM
        reason, message = self._reason or "exited", None
        if reason == "exited" and not state:
            message = "the container was removed by somebody else"
        elif reason == "exited" and code != 0 and (state.get("OOMKilled") or (self._memory and self._memory.kills)):
            reason = "oom"
            message = f"the job used more than its {size_text(self._request.memory_bytes)} of memory and was killed"
        elif reason == "exited" and code == 128 + signal.SIGKILL:
            limit = size_text(self._request.memory_bytes)
            message = f"the job was killed, most likely because it needed more than its {limit} of memory"
        elif reason == "exited" and code in (_NOT_FOUND, _NOT_EXECUTABLE, 1) and self._first.startswith(_INIT_FAILURES):
            reason = "start_failed"
            message = f"the command cannot be executed: {self._request.argv[0]}"
        # An engine tells no signal, and a command may end with such a code by itself; this one it got from us.
        ours = reason in ("stopped", "timeout") and code - 128 in (signal.SIGTERM, signal.SIGKILL)
        self._record(reason, code, code - 128 if ours else None, message)
        self._remove()

    def _finish_unstarted(self, message: str, code: int | None) -> None:
        super()._finish_unstarted(message, code)
        self._remove()

    def _drain(self) -> None:
        if self._attached is None:
            return
        until = time.monotonic() + _DRAIN_SECONDS
        try:
            while (left := until - time.monotonic()) > 0:
                self._attached.settimeout(left)
                block = self._attached.recv(READ_BYTES)
                if not block:
                    return
                self._feed(block)
        except OSError:
            return

    def _remove(self) -> None:
        """Free what the container holds; whoever removes the attempt sees to it in any case."""
        if not os.path.exists(os.path.join(self._path, rundir.EXIT)):
            return  # removed under our feet, by one who does this too
        try:
            self._engine.call(
                "DELETE",
                f"/containers/{self._asked.name}",
                query={"force": "true", "v": "true"},
                seconds=_REMOVE_SECONDS,
            )
        except (OSError, EngineError):
            pass


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
