"""The inside of attempts that our own programs run: asked for from the agent in each (`runstead.node.agent`)."""

import asyncio
import os
import socket
import stat
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from runstead.executors.agent.compartments import Compartments, Networks
from runstead.executors.agent.execution import AttendedExecution, ended_from
from runstead.executors.agent.file import InsideFile
from runstead.executors.agent.lanes import Idle, LaneCut, Lanes
from runstead.executors.attempts import Attempts
from runstead.executors.inside import Execution, Inside, OpenFile
from runstead.model.errors import Invalid, NotRunning, RunsteadError, Unsupported
from runstead.model.executions import Background, Command, Compartment, CompartmentLimits, FileEntry
from runstead.model.launches import AttemptState
from runstead.node.inside import agent

_CONNECT_SECONDS = 10.0
_FILE_THREADS = 16
_PAGE = 1000  # entries of a folder


class AgentInside(Inside):
    """The inside of one attempt, or of a compartment of one."""

    def __init__(self, lanes: Lanes, address: str | None, threads: ThreadPoolExecutor) -> None:
        """`address`: where its ports are in a network of its own."""
        self._lanes = lanes
        self._address = address
        self._threads = threads

    def close(self) -> None:
        """Let go of what is kept for the next request."""
        self._lanes.close()

    # Programs

    async def execute(self, command: Command) -> Execution:
        """See Inside."""
        message = {
            **_start_message("execute", command),
            "input": command.input,
            "timeout": command.timeout_seconds,
            "terminal": [command.terminal.rows, command.terminal.columns] if command.terminal is not None else None,
        }
        lane = await self._lanes.take()
        try:
            started, fds = await lane.ask(message)
        except LaneCut:
            raise await self._lanes.why_cut() from None
        except RunsteadError:
            self._lanes.give_back(lane)
            raise
        return AttendedExecution(lane, started, fds, self._lanes.give_back)

    async def spawn(self, command: Command, tag: str | None = None) -> Background:
        """See Inside."""
        message = {**_start_message("spawn", command), "timeout": command.timeout_seconds, "tag": tag}
        lane = await self._lanes.take()
        try:
            started, _ = await lane.ask(message)
        except LaneCut:
            raise await self._lanes.why_cut() from None
        except RunsteadError:
            self._lanes.give_back(lane)
            raise
        lane.close()
        return _background_from({**started, "ended": None})

    async def background(self) -> list[Background]:
        """See Inside."""
        answer = await self._ask_agent({"op": "list"})
        return [_background_from(values) for values in answer["background"]]

    async def kill(self, background_id: int) -> bool:
        """See Inside."""
        return bool((await self._ask_agent({"op": "kill", "id": background_id}))["killed"])

    async def _ask_agent(self, message: Mapping[str, object]) -> dict[str, Any]:
        """Ask for what the agent does itself, on a connection that never gets a worker."""
        lane = await self._lanes.connect()
        try:
            return (await lane.ask(message))[0]
        except LaneCut:
            raise await self._lanes.why_cut() from None
        finally:
            lane.close()

    # Ports

    async def connect(self, port: int) -> socket.socket:
        """See Inside."""
        more = [self._address] if self._address else []
        answer, fds = await self._lanes.ask({"op": "socket", "port": port, "more": more})
        sockets = [socket.socket(fileno=fd) for fd in fds]
        if answer["connected"]:
            [connected] = sockets
            connected.setblocking(False)
            return connected
        try:
            for address, candidate in zip(answer["addresses"], sockets, strict=True):
                candidate.setblocking(False)
                try:
                    async with asyncio.timeout(_CONNECT_SECONDS):
                        await asyncio.get_running_loop().sock_connect(candidate, (address, port))
                except (OSError, TimeoutError):
                    continue
                sockets.remove(candidate)
                return candidate
        finally:
            for one in sockets:
                one.close()
        raise ConnectionRefusedError(f"nothing listens on this port of the job: {port}")

    # Files

    async def open_file(
        self, path: str, *, write: bool = False, mode: int | None = None, parents: bool = False, replace: bool = False
    ) -> OpenFile:
        """See Inside."""
        message = {"op": "open", "path": path, "write": write, "mode": mode, "parents": parents, "replace": replace}
        _, fds = await self._lanes.ask(message)
        [fd] = fds
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise Invalid(f"this is no regular file: {path}")
        return InsideFile(fd, self._threads)

    async def stat(self, path: str) -> FileEntry:
        """See Inside."""
        answer, _ = await self._lanes.ask({"op": "stat", "path": path})
        return _entry_from(answer)

    async def list_folder(self, path: str, after: str | None, limit: int) -> Sequence[FileEntry]:
        """See Inside."""
        found: list[FileEntry] = []
        while len(found) < limit:  # in pages: to unpack one must not keep everybody else waiting
            count = min(limit - len(found), _PAGE)
            answer, _ = await self._lanes.ask({"op": "list", "path": path, "after": after, "limit": count})
            found.extend(_entry_from(values) for values in answer["entries"])
            after = answer["last"]
            if after is None:
                break
        return found

    async def make_folder(self, path: str) -> None:
        """See Inside."""
        await self._lanes.ask({"op": "make", "path": path})

    async def delete(self, path: str, *, recursive: bool) -> None:
        """See Inside."""
        await self._lanes.ask({"op": "delete", "path": path, "recursive": recursive})


def _start_message(op: str, command: Command) -> dict[str, Any]:
    return {
        "op": op,
        "argv": list(command.argv),
        "environment": dict(command.environment),
        "folder": command.folder,
        "user": command.user,
    }


def _background_from(values: Mapping[str, Any]) -> Background:
    return Background(
        id=values["id"],
        pid=values["pid"],
        argv=tuple(values["argv"]),
        tag=values["tag"],
        started_at=datetime.fromtimestamp(values["started_at"], UTC),
        ended=None if values["ended"] is None else ended_from(values["ended"]),
    )


def _entry_from(values: Mapping[str, Any]) -> FileEntry:
    return FileEntry(
        name=values["name"],
        path=values["path"],
        kind=values["kind"],
        size_bytes=values["size"],
        modified_at=datetime.fromtimestamp(values["modified"], UTC),
        mode=values["mode"],
    )


class AttemptInside(AgentInside):
    """The inside of one attempt, which can be divided."""

    def __init__(
        self, lanes: Lanes, address: str | None, threads: ThreadPoolExecutor, parts: Compartments | None, idle: Idle
    ) -> None:
        super().__init__(lanes, address, threads)
        self._parts = parts
        self._idle = idle
        self._known: dict[str, CompartmentInside] = {}

    def close(self) -> None:
        """Let go of what is kept for the next request."""
        super().close()
        for known in self._known.values():
            known.close()

    async def make_compartments(self, ids: Sequence[str], limits: CompartmentLimits) -> list[Compartment]:
        """See Inside."""
        return await self._divided().make(ids, limits)

    async def compartments(self) -> list[Compartment]:
        """See Inside."""
        return [] if self._parts is None else await self._parts.all()

    async def compartment(self, compartment_id: str) -> Inside:
        """See Inside."""
        if compartment_id not in self._known:
            parts = self._divided()
            entry = await parts.find(compartment_id)
            name = compartment_id if entry is None else entry.name
            lanes = Lanes(parts.folder, compartment_id, lambda: parts.why_gone(compartment_id), self._idle, name)
            known = CompartmentInside(lanes, None if entry is None else entry.address, self._threads)
            if entry is None:  # it may not be there yet
                return known
            self._known[compartment_id] = known
        return self._known[compartment_id]

    async def remove_compartments(self, ids: Sequence[str]) -> int:
        """See Inside."""
        for one in ids:
            known = self._known.pop(one, None)
            if known is not None:
                known.close()
        return await self._divided().remove(ids)

    def _divided(self) -> Compartments:
        if self._parts is None:
            raise Unsupported(
                "parts of this job cannot be closed off: it is no host of pooled sandboxes, or this machine cannot "
                "have them, and `runstead doctor` says what is missing"
            )
        return self._parts


class CompartmentInside(AgentInside):
    """The inside of a compartment: its programs always run as its user."""

    async def execute(self, command: Command) -> Execution:
        """See Inside."""
        return await super().execute(replace(command, user=None))

    async def spawn(self, command: Command, tag: str | None = None) -> Background:
        """See Inside."""
        return await super().spawn(replace(command, user=None), tag)


class Insides:
    """The insides of the attempts of one executor."""

    def __init__(self, attempts: Attempts) -> None:
        self.divisible = False  # whether attempts may have compartments
        self.networks: Networks | None = None  # for these
        self._attempts = attempts
        self._idle = Idle()
        self._warming: set[asyncio.Task[None]] = set()
        self._known: dict[str, AttemptInside] = {}
        self._threads = ThreadPoolExecutor(_FILE_THREADS, thread_name_prefix="inside")

    async def find(self, name: str) -> AttemptInside:
        """Return that of a running attempt. Raises NotRunning, Unsupported."""
        if name in self._known and not self._attempts.runs(name):
            self.forget(name)
        if name not in self._known:
            seen, facts = self._attempts.observe(name), self._attempts.facts(name)  # small files: a thread costs more
            if seen.state is not AttemptState.RUNNING:
                raise NotRunning(f"the job does not run: {name}")
            if facts.get("inside") != agent.VERSION:
                raise Unsupported(f"the job was started by another version of this server, which has no way in: {name}")
            address = facts.get("address")
            folder = str(self._attempts.path(name))
            lanes = Lanes(folder, name, lambda: NotRunning(f"the job does not run any more: {name}"), self._idle)
            divided = self.divisible and facts.get("divided", True)  # older attempts do not say
            parts = Compartments(folder, name, self.networks, self._threads) if divided else None
            self._known.setdefault(name, AttemptInside(lanes, address, self._threads, parts, self._idle))
            self._warming.add(task := asyncio.create_task(lanes.warm()))
            task.add_done_callback(self._warming.discard)
        return self._known[name]

    def forget(self, name: str) -> None:
        """Let go of an attempt that is over."""
        known = self._known.pop(name, None)
        if known is not None:
            known.close()

    def close(self) -> None:
        """Let go of all; what their programs do, they go on doing."""
        for task in self._warming:
            task.cancel()
        for name in list(self._known):
            self.forget(name)
        self._threads.shutdown(wait=False)
