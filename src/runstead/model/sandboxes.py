"""Sandboxes as frozen values: jobs, or parts of jobs, that are there for their inside.

The words are those of huggingface_hub 2.4.0 (`_sandbox.py`): a *dedicated* sandbox is a job; a *pooled* one is a part
of a job, its *host*, and has the id `<job id>.<its own id>`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from runstead.model.volumes import Volume

PORT = 49983
TOKEN_SECRET = "SBX_TOKEN"  # noqa: S105

LABEL = "hf-sandbox"
MODE_LABEL = "hf-sandbox-mode"
# What a client needs to find its sandboxes again, and to make the token of one anew.
FORK_LABEL = "hf-sandbox-fork"  # ours: which snapshot a sandbox began with
KEPT_LABELS = frozenset({LABEL, MODE_LABEL, "hf-sandbox-pool", "hf-sandbox-nonce", FORK_LABEL})

CAPACITY = "SBX_CAPACITY"
IDLE_TIMEOUT = "SBX_IDLE_TIMEOUT"
HOST_MODE = "SBX_HOST_MODE"
SERVER_PORT = "SBX_PORT"
EGRESS = "RUNSTEAD_EGRESS"  # ours: all of the outside that the sandbox may reach
# For the program that a client's own command would download; what runs in a sandbox never sees them.
HIDDEN_VARIABLES = frozenset(
    {
        TOKEN_SECRET,
        "SBX_DL_TOKEN",
        "SBX_SERVER_URL",
        "SBX_SERVER_MOUNT",
        "SBX_SERVER_SHA256",
        "SBX_ALLOW_UNVERIFIED_SERVER",
    }
)
SERVER_BUCKET = "huggingface/sbx-server"
SERVER_MOUNT = "/.hf-sbx-server"


class Mode(StrEnum):
    """Whether a job is one sandbox or the host of many."""

    DEDICATED = "dedicated"
    POOL = "pool"


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What makes a job a sandbox, read once from what a client asked for."""

    mode: Mode
    idle_seconds: int | None = None  # None: it is never too idle
    capacity: int | None = None  # of a host: how many it takes; None: as many as there is room for
    unmounted: tuple[Volume, ...] = ()  # asked for, answered, and not there: the client's program
    egress: tuple[str, ...] | None = None  # all of the outside that it may reach; None: everything
    snapshots: tuple[str, ...] = ()  # of a fork: the files that it begins with, each over those before


@dataclass(frozen=True, slots=True)
class PooledSandbox:
    """A part of a host, as it is remembered."""

    job_id: str
    id: str  # 16 hex digits
    uid: int
    home: str
    confinement: str
    created_at: datetime
    active_at: datetime
    idle_seconds: int | None
    sealed: bytes = field(repr=False)  # its token and its environment


@dataclass(frozen=True, slots=True)
class NewPooledSandbox:
    """What a client asks for when it asks for sandboxes of a host."""

    idle_seconds: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    processes: int = 256
    memory_bytes: int = 2 * 2**30
    egress: tuple[str, ...] | None = None  # all of the outside that they may reach; None: as their host
