"""What an executor promises about the inside of a running attempt: programs, files, ports.

The base of sandboxes, exposed ports and SSH. Everything raises `NotRunning` once the attempt is over, and
`Unsupported` for what the backend cannot do (its capabilities say so beforehand). Paths are the attempt's own, and
those that do not begin with a slash begin in the folder where its command began; links inside are followed as a
program inside would follow them, never out of the attempt.
"""

import socket
from abc import ABC, abstractmethod
from collections.abc import Sequence

from runstead.model.errors import Unsupported
from runstead.model.executions import (
    Background,
    Command,
    Compartment,
    CompartmentLimits,
    Ended,
    FileEntry,
    Output,
    TerminalSize,
)


class Execution(ABC):
    """A program that was started inside of an attempt and is attended to. Used by one task at a time."""

    pid: int  # as processes inside see it

    @abstractmethod
    async def read(self) -> Output | None:
        """Return the next piece of output; None when there will be none.

        The program waits while nobody reads. After its end, output that its descendants hold open is awaited for
        two seconds at most.
        """

    @abstractmethod
    async def write(self, data: bytes) -> None:
        """Write to standard input, waiting while the program does not read. Raises BrokenPipeError."""

    @abstractmethod
    async def end_input(self) -> None:
        """Close standard input. Idempotent."""

    @abstractmethod
    async def wait(self) -> Ended:
        """Return how the program ended, once it has; output may still be there to read."""

    @abstractmethod
    async def signal(self, number: int) -> None:
        """Send a signal to the program's process group; nothing happens when it is over."""

    @abstractmethod
    async def resize(self, size: TerminalSize) -> None:
        """Change the size of its terminal."""

    @abstractmethod
    async def close(self) -> None:
        """Kill the program with all it started, if it still runs, and let go. Idempotent."""


class OpenFile(ABC):
    """A regular file of an attempt, open for one purpose."""

    @abstractmethod
    async def size(self) -> int:
        """Return its length in bytes now."""

    @abstractmethod
    async def read(self, offset: int, count: int) -> bytes:
        """Return up to `count` bytes; fewer only at the end of the file."""

    @abstractmethod
    async def write(self, offset: int, data: bytes) -> None:
        """Write all of `data`."""

    @abstractmethod
    async def truncate(self, size: int) -> None:
        """Set its length in bytes; what is below stays."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of it. Idempotent. Raises OSError when what was written could not be kept."""


class Inside(ABC):
    """The inside of one running attempt."""

    @abstractmethod
    async def execute(self, command: Command) -> Execution:
        """Start a program and attend to it. Raises Invalid when it cannot be executed: no such program, folder, user.

        It ends with `Execution.close`, also when this server dies: nobody could collect its output any more.
        """

    @abstractmethod
    async def spawn(self, command: Command, tag: str | None = None) -> Background:
        """Start a program in the background; it outlives this server. Raises as `execute` does."""

    @abstractmethod
    async def background(self) -> list[Background]:
        """List the programs in the background, oldest first; the last 256 that ended stay listed."""

    @abstractmethod
    async def kill(self, background_id: int) -> bool:
        """Kill one with all it started; False when it is not there or had ended."""

    @abstractmethod
    async def connect(self, port: int) -> socket.socket:
        """Return a connected, non-blocking stream socket to what listens on the port inside, on any of its addresses.

        Raises ConnectionRefusedError when nothing listens.
        """

    @abstractmethod
    async def open_file(
        self, path: str, *, write: bool = False, mode: int | None = None, parents: bool = False, replace: bool = False
    ) -> OpenFile:
        """Open a regular file to read or, with `write`, to write, making it if it is not there.

        `mode`: its permission bits; `parents`: make missing directories; `replace`: empty it. Raises EntryNotFound,
        Conflict for a directory, Invalid for anything else that cannot be opened.
        """

    @abstractmethod
    async def stat(self, path: str) -> FileEntry:
        """Describe one name. Raises EntryNotFound, Invalid."""

    @abstractmethod
    async def list_folder(self, path: str, after: str | None, limit: int) -> Sequence[FileEntry]:
        """Return up to `limit` entries of a directory, sorted by name, that come after `after`.

        Raises EntryNotFound, Invalid for what is no directory.
        """

    @abstractmethod
    async def make_folder(self, path: str) -> None:
        """Make a directory and its parents; one that is there is fine. Raises Invalid."""

    @abstractmethod
    async def delete(self, path: str, *, recursive: bool) -> None:
        """Remove a file, a link, or a directory: an empty one, or with `recursive` any.

        Raises EntryNotFound, Invalid.
        """

    async def make_compartments(self, ids: Sequence[str], limits: CompartmentLimits) -> list[Compartment]:
        """Close off parts of the attempt, one for each id (16 hex digits), all with the same limits.

        They outlive this server, as the attempt does, and end with it. Idempotent: what is there under an id is
        returned as it is. Programs in one neither see, signal, read nor starve those in another, or the attempt's
        own. Raises Unavailable when there is no room for one more; then none is made.
        """
        raise Unsupported(
            f"parts of a job cannot be closed off here: {len(ids)} with {limits.processes} processes each"
        )

    async def compartments(self) -> list[Compartment]:
        """List the compartments there are, oldest first."""
        return []

    async def compartment(self, compartment_id: str) -> "Inside":
        """Return the inside of a compartment. Cheap; its methods raise EntryNotFound when it is not there.

        What holds for an attempt holds for it, with these differences. A command's environment is complete (nothing
        of the attempt's own is added) and its user is always the compartment's. Paths begin at the home, with a
        slash or without, `..` stops there, and a link in any place but the last is refused (Invalid), as is one in
        the last unless the link itself is meant (`stat`, `list_folder`, `delete`); entries have the path that leads
        back to them, `/` being the home. `connect` goes to the unix socket `<home>/.sbx/proxy/<port>.sock`, and to
        the port itself where the compartment has a network of its own.
        """
        raise Unsupported(f"parts of a job cannot be closed off here: {compartment_id}")

    async def remove_compartments(self, ids: Sequence[str]) -> int:
        """Kill all that runs in these and delete their homes; return how many were there. Idempotent."""
        raise Unsupported(f"parts of a job cannot be closed off here: {len(ids)}")
