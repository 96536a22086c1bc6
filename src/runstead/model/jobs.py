"""Jobs as frozen values: what was asked for, where a job stands, and which moves are allowed.

`Stage` is the wire's word (huggingface_hub 2.4.0, `JobStage`); `Phase` is ours and finer: it says which duty
the reconcile loop has next. Every change of either goes through `Transition`, guarded by `ALLOWED`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from runstead.model.costs import Span, cost_micro_usd
from runstead.model.ports import NetworkGroup, Ports
from runstead.model.sandboxes import SandboxSpec
from runstead.model.volumes import Volume, VolumeKind

JsonObject = Mapping[str, Any]


class Stage(StrEnum):
    """The stage a client sees."""

    SCHEDULING = "SCHEDULING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    CANCELED = "CANCELED"
    ERROR = "ERROR"
    DELETED = "DELETED"

    @property
    def is_terminal(self) -> bool:
        """Whether a job in this stage never changes stage again."""
        return self not in (Stage.SCHEDULING, Stage.RUNNING)


class Phase(StrEnum):
    """Which duty comes next for a job."""

    WAITING = "waiting"  # in the queue: nothing of it exists yet
    STARTING = "starting"  # resources reserved; the executor is asked to start the attempt
    RUNNING = "running"  # the executor has it
    RELEASING = "releasing"  # terminal for users; what the last attempt held is being given back
    DONE = "done"  # nothing is left to do, ever


class FailureClass(StrEnum):
    """Why a job did not complete; every terminal job but a completed one carries exactly one."""

    USER = "user"  # the command failed: exit code or signal
    TIMEOUT = "timeout"
    OOM = "oom"
    IMAGE = "image"
    VOLUME = "volume"
    INFRA = "infra"  # our doing or the machine's
    CANCELED = "canceled"


class CancelReason(StrEnum):
    """Why a job is to be ended before its time."""

    ASKED = "asked"  # by somebody: it ends CANCELED
    IDLE = "idle"  # a sandbox that nobody used for as long as was agreed: it ends COMPLETED


# From each phase, the phases a transition may lead to. RUNNING to WAITING is a retry.
ALLOWED: Mapping[Phase, frozenset[Phase]] = {
    Phase.WAITING: frozenset({Phase.WAITING, Phase.STARTING, Phase.DONE}),
    Phase.STARTING: frozenset({Phase.STARTING, Phase.RUNNING, Phase.WAITING, Phase.RELEASING}),
    Phase.RUNNING: frozenset({Phase.RUNNING, Phase.WAITING, Phase.RELEASING}),
    Phase.RELEASING: frozenset({Phase.RELEASING, Phase.DONE}),
    Phase.DONE: frozenset(),
}


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What a user asked for, validated; secrets travel beside it, never in it."""

    command: tuple[str, ...]
    flavor: str
    docker_image: str | None = None
    space_id: str | None = None
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    secret_names: tuple[str, ...] = ()
    timeout_seconds: int = 1800
    attempts: int = 1
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    resource_group_id: str | None = None
    arch: str | None = None
    tags: tuple[str, ...] = ()
    volumes: tuple[Volume, ...] = ()
    ports: Ports = field(default_factory=Ports)  # these may change while the job runs
    network: NetworkGroup | None = None
    sandbox: SandboxSpec | None = None

    @property
    def image(self) -> str:
        """The image as a user would name it."""
        return self.docker_image or f"hf.co/spaces/{self.space_id}"

    @property
    def asked_volumes(self) -> tuple[Volume, ...]:
        """The volumes as they were asked for, also those that are not mounted."""
        return (*self.volumes, *self.sandbox.unmounted) if self.sandbox else self.volumes

    @property
    def writes_to(self) -> tuple[str, ...]:
        """The buckets that the job may write to, each once."""
        writable = [v.source for v in self.volumes if v.kind is VolumeKind.BUCKET and not v.read_only]
        return tuple(dict.fromkeys(writable))


@dataclass(frozen=True, slots=True)
class Initiator:
    """What made a job: a user, or another object of the server."""

    type: str  # user, org, scheduled-job, duplicated-job, webhook
    id: str
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Reservation:
    """What an admitted job holds of its machine."""

    cpu_millicores: int
    memory_bytes: int
    gpu_ids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """One job as stored. `seq` is its place in the order of submission; newer is larger."""

    seq: int
    id: str
    namespace_id: str
    namespace: str
    namespace_kind: str
    created_by_id: str
    created_by: str
    spec: JobSpec
    stage: Stage
    phase: Phase
    message: str | None
    created_at: datetime
    initiator: Initiator
    attempt: int = 1
    failure_count: int = 0
    failure_class: FailureClass | None = None
    exit_code: int | None = None
    started_at: datetime | None = None  # of the current attempt
    finished_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    cancel_reason: CancelReason = CancelReason.ASKED
    not_before: datetime | None = None  # a retry is not admitted earlier
    executor: str | None = None  # the executor instance that has the current attempt
    handle: JsonObject | None = None
    reservation: Reservation | None = None
    price_micro_usd: int = 0  # per minute, as it was when the job was submitted
    cost_micro_usd: int = 0  # of the attempts that are over

    @property
    def labels(self) -> Mapping[str, str]:
        """The labels as they are now."""
        return self.spec.labels

    def cost_at(self, now: datetime) -> int:
        """Return what the job has cost until now, in millionths; once it is over, in all."""
        if self.started_at is None or self.finished_at is not None or not self.price_micro_usd:
            return self.cost_micro_usd
        used = min(now - self.started_at, timedelta(seconds=self.spec.timeout_seconds))
        return self.cost_micro_usd + cost_micro_usd(self.price_micro_usd, used)


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job about to be stored; the store gives it its `seq`."""

    id: str
    namespace_id: str
    namespace: str
    namespace_kind: str
    created_by_id: str
    created_by: str
    spec: JobSpec
    initiator: Initiator
    created_at: datetime
    message: str | None = None
    sealed_secrets: bytes | None = None
    idempotency_key: str | None = None
    price_micro_usd: int = 0  # per minute


class Unset(StrEnum):
    """Marks a field of `Transition` that stays as it is (None means: becomes empty)."""

    UNSET = "unset"


UNSET = Unset.UNSET


@dataclass(frozen=True, slots=True)
class Transition:
    """One guarded change of one job, applied together with its history row.

    It takes effect only while the job is in one of `from_phases` at attempt `attempt`; otherwise the store
    refuses it and the caller looks again. Fields left `UNSET` keep their value.
    """

    job_id: str
    attempt: int
    from_phases: frozenset[Phase]
    phase: Phase
    stage: Stage
    at: datetime
    message: str | Unset | None = UNSET
    failure_class: FailureClass | Unset | None = UNSET
    exit_code: int | Unset | None = UNSET
    started_at: datetime | Unset | None = UNSET
    finished_at: datetime | Unset | None = UNSET
    not_before: datetime | Unset | None = UNSET
    handle: JsonObject | Unset | None = UNSET
    reservation: Reservation | Unset | None = UNSET
    executor: str | Unset | None = UNSET
    next_attempt: int | Unset = UNSET
    failure_count: int | Unset = UNSET
    used: Span | None = None  # the time the attempt ran that ends with this

    def __post_init__(self) -> None:
        """Refuse a move that no job may ever make: that is a defect of the caller."""
        for phase in self.from_phases:
            if self.phase not in ALLOWED[phase]:
                raise ValueError(f"no job moves from {phase} to {self.phase}")


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    """One past change of a job."""

    job_id: str
    at: datetime
    attempt: int
    stage: Stage
    phase: Phase
    message: str | None
    failure_class: FailureClass | None


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs of a namespace to list: any of `stages` (all when empty) and every one of `labels`."""

    stages: frozenset[Stage] = frozenset()
    labels: Mapping[str, str] | None = None
