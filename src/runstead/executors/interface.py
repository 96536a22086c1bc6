"""What an executor promises: it starts attempts somewhere, and finds them again.

Executors know no users, HTTP, SQL or schedules. Errors: `Invalid` for a launch this executor can never run
(the job fails with the message), `Unavailable` when it could later, `BackendFailure` for anything else.
An executor is told in its constructor whom to wake when an attempt changes; waking is a courtesy, callers
poll as well.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from runstead.executors.inside import Inside
from runstead.model.errors import Unsupported
from runstead.model.hardware import Machine
from runstead.model.launches import Handle, Launch, Observation, Usage


class Shortfall(Enum):
    """What an executor does not keep apart or cannot tell, where others do; the value is for people."""

    SHARED_BRIDGE = (
        "jobs reach each other's ports on the engine's bridge, also those of other owners; executor.network = none "
        "keeps them apart"
    )
    IMAGE_PROGRAMS = (
        "containers are reached by the engine's API alone: sandboxes, shells and ports need /bin/sh, grep, stat, "
        "find and dd in the image, ports one of python3, socat, nc and perl as well"
    )
    ENDING_SIGNAL = "a program in a sandbox or shell that a signal ended shows exit code 128 + the signal's number"
    HIDDEN_PROCESSES = (
        "a program in a sandbox that cleared its environment and left its parent and its session, or that uses up all "
        "processes of the job, is ended with the job only"
    )
    MIXED_OUTPUTS = "what a program in a sandbox writes to both outputs at once may arrive in another order"
    LATE_OUTPUT = "what a program in a sandbox left running writes after its end is not shown"
    CLOSED_INPUT = "what is written to a program in a sandbox that has closed its input is lost without an error"
    TEXT_ONLY = "arguments and variables of programs in sandboxes are text in UTF-8, and variables have plain names"
    FILES_OF_THE_DEAD = "a file that is open from outside is lost when the job ends or kills all its processes"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do, so that the API can refuse a job at creation with the reason."""

    kind: str  # "process", "oci", ...
    instance: str  # which machine or cluster: handles of another instance are not ours to poll
    images: bool  # whether the named image is used
    private_network: bool  # whether two jobs may listen on the same port
    queues_itself: bool  # whether admission is the backend's business
    host_address: str | None  # where a job reaches this server's machine; None: nowhere
    machine: Machine | None  # what jobs may use; None when the backend decides
    notes: tuple[str, ...] = ()  # what a user should know; shown in the log and in status.message
    missing: tuple[str, ...] = ()  # what the machine lacks, and how to get it; shown by `runstead doctor`
    volumes: bool = False  # whether `Launch.mounts` can be had
    without_volumes: str = "jobs cannot have volumes here"  # why not, and how to get them
    disk_limits: bool = False  # whether `Launch.disk_bytes` is kept; else a job may fill the disk
    private_ids: bool = False  # whether a job's files belong to the ids of its namespace, not to the server's user
    inside: bool = False  # whether `Executor.inside` can be had: exec, files
    compartments: bool = False  # whether attempts can be divided: `Inside.make_compartments`
    snapshots: bool = False  # whether `Executor.snapshot` can be had, and `Launch.snapshots`
    without_snapshots: str = "the files of a sandbox cannot be kept for others here"  # why not, and how to get them
    prepared: bool = False  # whether `Executor.keep_prepared` can be had
    without_prepared: str = "only containers of the oci executor, made without a runtime, can be prepared ahead"
    egress: bool = False  # whether `Launch.egress` can be had
    ports: bool = False  # whether `Inside.connect` can be had: exposed ports
    without_ports: str = "ports of jobs cannot be reached here"  # why not, and how to get them
    groups: bool = False  # whether `Launch.group` can be had
    shortfalls: frozenset[Shortfall] = frozenset()  # shown by `runstead doctor`
    without_groups: str = "jobs cannot be joined in a network here"  # why not, and how to get it


class Executor(ABC):
    """Starts attempts and tells what became of them."""

    @abstractmethod
    async def open(self) -> Capabilities:
        """Make ready and say what can be done here. Called once, before anything else; may take seconds."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of connections and tasks of this process. Attempts go on."""

    @abstractmethod
    async def prepare(self, launch: Launch, tell: Callable[[str], None]) -> None:
        """Bring what the attempt needs to this machine, its image above all. May take minutes; cancelling is fine.

        `tell` is called in the event loop with a line for people whenever there is progress. Idempotent; what was
        prepared is there for `start` to use. Raises ImageFailure with the registry's own reason, Unavailable.
        """

    @abstractmethod
    async def start(self, launch: Launch) -> Handle:
        """Start the attempt and return how to find it, once its command was executed or failed to.

        Without a command (`argv` is empty) the attempt stays until it is stopped: it is there for its inside.
        Idempotent per (job_id, attempt): called again, also after a crash or by another server process, it
        returns the handle of the attempt that is there, running or ended, and starts nothing. A command that
        cannot be executed is no error here: it shows as an exit record with START_FAILED.
        """

    @abstractmethod
    async def poll(self, handles: Sequence[Handle]) -> list[Observation]:
        """Look at each attempt, in the order given. Unknown ones are LOST, never an error. Does not block."""

    @abstractmethod
    async def stop(self, handle: Handle, grace_seconds: float) -> None:
        """Ask the attempt to end: SIGTERM to its processes, SIGKILL after the grace. Returns at once.

        Idempotent; nothing happens to an attempt that has ended. Its end shows in `poll`.
        """

    @abstractmethod
    async def remove(self, handle: Handle) -> None:
        """Give back all that the attempt held (processes, cgroups, namespaces, files), except its log.

        Idempotent. Kills what still runs. When it returns, nothing is left.
        """

    @abstractmethod
    async def inside(self, handle: Handle) -> Inside:
        """Return the inside of a running attempt. Cheap; raises NotRunning when it is over, Unsupported."""

    @abstractmethod
    async def owned(self) -> list[tuple[str, int, Handle]]:
        """Return (job_id, attempt, handle) of every attempt that still holds something here."""

    @abstractmethod
    async def usage(self, handle: Handle) -> Usage | None:
        """Return the counters of a running attempt; None when it does not run."""

    async def snapshot(self, handle: Handle, name: str) -> None:
        """Keep what a running attempt wrote until now, for others of its namespace: `Launch.snapshots`.

        What it began with itself is not part of it. What programs write meanwhile may be in it or not, and files by
        halves. The name is letters, digits, dots and dashes. Raises NotRunning, Conflict for a name that is taken,
        Unsupported.
        """
        raise Unsupported(f"the files of a job cannot be kept for others here: {handle.data.get('job_id')} as {name}")

    async def expect(self, namespace: str, snapshot: str, count: int) -> None:  # noqa: B027 - most have no use
        """Make ready, where that is of use, for so many attempts that are about to come and begin with a snapshot."""

    async def snapshots(self) -> list[str]:
        """List the snapshots on this machine that are older than some minutes."""
        return []

    async def drop_snapshot(self, name: str) -> None:
        """Delete a snapshot that no attempt is started from any more. Idempotent."""
        raise Unsupported(f"there are no snapshots here: {name}")

    async def keep_prepared(self, wanted: Sequence[tuple[Launch, int]]) -> list[int]:
        """Have so many attempts like each of these prepared, and no others; return how many there are now.

        What does not fit any more is let go of at once; of what is missing one is made, which `start` then gives to
        the next attempt without a command that needs the same image, namespace and disk and has no mounts of its own.
        Of a launch only these count, and the image is here. They hold memory of this machine, no processor, and end
        with this process. Raises Unavailable, Unsupported.
        """
        raise Unsupported(f"nothing can be prepared ahead here: {len(wanted)} images")
