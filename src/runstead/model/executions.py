"""What happens inside of a running attempt on request: programs, files. Values only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal


@dataclass(frozen=True, slots=True)
class TerminalSize:
    """Of a terminal, in characters."""

    rows: int
    columns: int


@dataclass(frozen=True, slots=True)
class Command:
    """A program to run inside of an attempt. It may hold secrets: never print it whole."""

    argv: tuple[str, ...]  # the first is looked up in the PATH inside
    environment: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)  # over the attempt's own
    folder: str | None = None  # working directory; None: the one the attempt's command began in
    user: str | None = None  # name or number, with ":group" if wanted; None: the attempt's own
    terminal: TerminalSize | None = None  # a terminal instead of three pipes; all output is then `stdout`
    input: bool = False  # whether standard input is written to; else it is empty
    timeout_seconds: float | None = None  # after it all that the program started is killed


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of what a program wrote, in the order of arrival."""

    stream: Literal["stdout", "stderr"]
    data: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended."""

    exit_code: int | None  # None: by a signal
    signal: int | None
    timed_out: bool = False


@dataclass(frozen=True, slots=True)
class Background:
    """A program that runs, or ran, in the background of an attempt; its output goes nowhere."""

    id: int  # counted from 0 within the attempt, never used again
    pid: int  # as processes inside see it
    argv: tuple[str, ...]
    tag: str | None
    started_at: datetime
    ended: Ended | None  # None: it runs


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One name in the file system of an attempt; symbolic links are not followed."""

    name: str  # "" for the root
    path: str  # absolute, inside
    kind: Literal["file", "dir", "symlink", "other"]
    size_bytes: int
    modified_at: datetime
    mode: int  # permission bits


@dataclass(frozen=True, slots=True)
class CompartmentLimits:
    """What one compartment may use of its attempt, at most."""

    processes: int = 256
    memory_bytes: int = 2 * 2**30
    cpu_millicores: int | None = None  # None: an equal share while others want it too, all of it otherwise
    egress: tuple[str, ...] | None = None  # all of the outside that it may reach (kit.targets); None: as the attempt


@dataclass(frozen=True, slots=True)
class Compartment:
    """A closed-off part of an attempt, with a user id, a home, a cgroup and processes of its own."""

    id: str
    uid: int  # as processes inside see it; its group has the same number
    home: str  # absolute; where its programs begin
    confinement: str  # in a line, for people: what keeps it apart from its neighbours
