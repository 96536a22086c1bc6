"""What passes between the services and an executor: a launch, a handle, observations, usage."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from runstead.model.volumes import Mount


@dataclass(frozen=True, slots=True)
class Membership:
    """Of an attempt in a group of attempts that reach each other on every port."""

    key: str  # of the group; equal keys are the same group
    names: tuple[str, ...]  # host names by which members find this one, shared with others or its own


@dataclass(frozen=True, slots=True)
class Launch:
    """Everything an executor needs to start one attempt. It holds secrets: never print or store it whole."""

    job_id: str
    attempt: int
    namespace: str
    image: str
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)  # complete: user's, secrets, built-in
    cpu_millicores: int
    memory_bytes: int
    disk_bytes: int | None
    gpu_ids: tuple[str, ...]
    timeout_seconds: int
    log_path: Path  # the supervisor appends here, in the format of runstead.node.logformat
    log_not_before: datetime  # no line may be stamped earlier: attempts share one monotone log
    preamble: tuple[str, ...]  # lines written to the log before any output
    mounts: tuple[Mount, ...] = ()
    egress: tuple[str, ...] | None = None  # all of the outside that it may reach (kit.targets); None: everything
    snapshots: tuple[str, ...] = ()  # files it begins with, in this order over its image; where capabilities say so
    group: Membership | None = None  # only where the capabilities say `groups`
    divided: bool = False  # compartments will be made in it, and only then can they; where capabilities say so


@dataclass(frozen=True, slots=True)
class Handle:
    """How to find a started attempt again, also from another server process.

    `data` is a small JSON object whose meaning only the executor knows; `version` is its layout.
    """

    executor: str
    version: int
    data: Mapping[str, Any]


class AttemptState(StrEnum):
    """What an executor can say about an attempt."""

    RUNNING = "running"
    EXITED = "exited"  # an exit record exists
    LOST = "lost"  # it was started, is not there any more, and left no exit record


class ExitReason(StrEnum):
    """Why an attempt ended, as its supervisor saw it."""

    EXITED = "exited"  # by itself: look at `exit_code` or `signal`
    TIMEOUT = "timeout"
    STOPPED = "stopped"  # we asked for it
    OOM = "oom"
    START_FAILED = "start_failed"  # the command never ran; `message` says why


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """The durable last word of a supervisor."""

    reason: ExitReason
    exit_code: int | None  # as a shell shows it: 128 + n for signal n
    signal: int | None
    started_at: datetime | None
    finished_at: datetime
    message: str | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """One look at one attempt."""

    state: AttemptState
    started_at: datetime | None = None
    exit: ExitRecord | None = None
    message: str | None = None  # the backend's own word, for people


@dataclass(frozen=True, slots=True)
class GpuUsage:
    """Use of one accelerator at one instant."""

    utilization_percent: float
    memory_used_bytes: int
    memory_total_bytes: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Counters of a running attempt; rates are for the reader to take between two of them."""

    at: datetime
    cpu_seconds: float  # used since the attempt began
    memory_used_bytes: int
    rx_bytes: int  # received since the attempt began
    tx_bytes: int
    gpus: Mapping[str, GpuUsage] = field(default_factory=dict[str, GpuUsage])
