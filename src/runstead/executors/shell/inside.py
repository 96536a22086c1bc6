"""The inside of containers that an engine elsewhere runs (in a virtual machine, on another kernel, without root).

All goes through the engine's own API and by the shell of the image: what cannot be had in this way is refused, or is a
`Shortfall` of the executor.
"""

import asyncio
import contextlib
import re
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from runstead.executors.attempts import Attempts
from runstead.executors.inside import Execution, Inside, OpenFile
from runstead.executors.shell import scripts
from runstead.executors.shell.background import Backgrounds, refusal
from runstead.executors.shell.door import Door
from runstead.executors.shell.execution import ShellExecution
from runstead.executors.shell.files import Files
from runstead.executors.shell.lanes import Lanes, Watch
from runstead.executors.shell.ports import Ports
from runstead.model.errors import Invalid, NotRunning, Unavailable
from runstead.model.executions import Background, Command, FileEntry
from runstead.model.launches import AttemptState
from runstead.node.engine import STATE, Engine, EngineError

_THREADS = 8  # each waits for an answer of the engine
_NOT_ENDED = 3  # what `rs_end` says of one that was ended by somebody else


class ShellInside(Inside):
    """The inside of one attempt."""

    def __init__(self, door: Door, folder: str) -> None:
        """`folder`: where its command began."""
        self._door = door
        self._folder = folder
        self._lanes = Lanes(door, None)
        self._watches: dict[str | None, Watch] = {None: Watch(door, None)}
        self._files = Files(self._lanes, folder)
        self._ports = Ports(door, self._lanes, self._watches[None])
        self._backgrounds = Backgrounds(door, self._lanes)
        self._tasks: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """Let go. What this server attends to ends; what is in the background goes on."""
        self._ports.close()
        self._lanes.close()
        for watch in self._watches.values():
            self._keep(asyncio.create_task(watch.close()))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Programs

    async def execute(self, command: Command) -> Execution:
        """See Inside."""
        starting = asyncio.create_task(self._execute(command))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            self._keep(asyncio.create_task(_end(starting)))
            raise

    async def _execute(self, command: Command) -> Execution:
        folder, variables = self._check(command)
        watch = self._watch(command.user)
        mark = await watch.mark()
        size = command.terminal
        sizes = ["", ""] if size is None else [str(size.rows), str(size.columns)]
        number, stream, word = await self._door.begin(
            scripts.EXECUTE,
            [folder, "1" if command.input or size is not None else "", *sizes, *command.argv],
            mark,
            variables={**({} if size is None else {"TERM": "xterm"}), **variables, scripts.MARK: mark},
            user=command.user,
            terminal=size,
            given=command.input,
        )
        if not word.isdigit():
            await stream.close()
            raise refusal(word, command, folder)
        execution = ShellExecution(
            self._door, watch, mark, number, stream, int(word), terminal=size is not None, given=command.input
        )
        if command.timeout_seconds is not None:
            execution.limit(command.timeout_seconds)
        return execution

    async def spawn(self, command: Command, tag: str | None = None) -> Background:
        """See Inside."""
        folder, variables = self._check(command)
        starting = asyncio.create_task(self._backgrounds.spawn(command, folder, variables, tag))
        word, started = await asyncio.shield(starting)  # what begins in the background begins whole
        if started is None:
            raise refusal(word, command, folder)
        return started

    async def background(self) -> list[Background]:
        """See Inside."""
        return await self._backgrounds.all()

    async def kill(self, background_id: int) -> bool:
        """See Inside."""
        runs, user = await self._backgrounds.user_of(background_id)
        if not runs:
            return False
        answer = await self._watch(user).ask("rs_end", STATE, str(background_id))
        if answer.code not in (0, _NOT_ENDED):
            raise Unavailable("not all that the program started could be ended; ending the job does it")
        return answer.code == 0

    def _watch(self, user: str | None) -> Watch:
        if user not in self._watches:
            self._watches[user] = Watch(self._door, user)
        return self._watches[user]

    def _check(self, command: Command) -> tuple[str, Mapping[str, str]]:
        """Return where a command begins, and its variables. Raises Invalid for what cannot be said to an engine."""
        if not command.argv or not command.argv[0]:
            raise Invalid("there is no such program that can be executed: nothing is named")
        folder = self._folder if command.folder is None else f"{self._folder.rstrip('/')}/{command.folder}"
        if command.folder is not None and command.folder.startswith("/"):
            folder = command.folder
        words = [*command.argv, folder, *command.environment, *command.environment.values(), command.user or ""]
        if any("\0" in word for word in words):
            raise Invalid("a command, its variables and its folder have no zero bytes")
        try:
            "".join(words).encode()
        except UnicodeEncodeError:
            raise Invalid(
                "this container is reached by its engine's API, which takes text in UTF-8 only: give other bytes to "
                "the program in a file or on its standard input"
            ) from None
        for name in command.environment:
            if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) is None:
                raise Invalid(
                    f"shells pass on no variable of this name, and one of the image starts the program: {name}"
                )
        return folder, command.environment

    # Ports

    async def connect(self, port: int) -> socket.socket:
        """See Inside."""
        return await self._ports.connect(port, {})

    # Files

    async def open_file(
        self, path: str, *, write: bool = False, mode: int | None = None, parents: bool = False, replace: bool = False
    ) -> OpenFile:
        """See Inside."""
        return await self._files.open(path, write=write, mode=mode, parents=parents, replace=replace)

    async def stat(self, path: str) -> FileEntry:
        """See Inside."""
        return await self._files.stat(path)

    async def list_folder(self, path: str, after: str | None, limit: int) -> Sequence[FileEntry]:
        """See Inside."""
        return await self._files.list_folder(path, after, limit)

    async def make_folder(self, path: str) -> None:
        """See Inside."""
        await self._files.make_folder(path)

    async def delete(self, path: str, *, recursive: bool) -> None:
        """See Inside."""
        await self._files.delete(path, recursive=recursive)


async def _end(starting: "asyncio.Task[Execution]") -> None:
    """Close a program that nobody waits for any more, once it has begun."""
    with contextlib.suppress(Exception):
        await (await starting).close()


class ShellInsides:
    """The insides of the attempts of one executor."""

    def __init__(self, attempts: Attempts, engine: Engine) -> None:
        self._attempts = attempts
        self._engine = engine
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="engine")
        self._known: dict[str, ShellInside] = {}

    async def find(self, name: str, container: str) -> Inside:
        """Return that of a running attempt. Raises NotRunning, Unavailable."""
        seen = await asyncio.to_thread(self._attempts.observe, name)
        if seen.state is not AttemptState.RUNNING:
            self.forget(name)
            raise NotRunning(f"the job does not run: {name}")
        if name not in self._known:
            door = Door(self._engine, container, self._threads)
            try:
                found = await door.ask("GET", f"/containers/{container}/json")
            except OSError as error:
                raise Unavailable(f"the container engine does not answer: {error}") from error
            except EngineError as error:
                raise NotRunning(f"the job does not run: {error}: {name}") from error
            self._known.setdefault(name, ShellInside(door, str(found["Config"].get("WorkingDir") or "/")))
        return self._known[name]

    def forget(self, name: str) -> None:
        """Let go of an attempt that is over."""
        known = self._known.pop(name, None)
        if known is not None:
            known.close()

    def close(self) -> None:
        """Let go of all; what is in the background goes on."""
        for name in list(self._known):
            self.forget(name)
        self._threads.shutdown(wait=False)
