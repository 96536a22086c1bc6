"""Schedules as frozen values: a job's specification, when it runs, and what became of its runs."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from runstead.model.jobs import Job, JobSpec, NewJob


@dataclass(frozen=True, slots=True)
class Schedule:
    """One schedule as stored. `seq` is its place in the order of creation; newer is larger."""

    seq: int
    id: str
    namespace_id: str
    namespace: str
    namespace_kind: str
    created_by_id: str  # whose rights its runs have
    created_by: str
    spec: JobSpec
    expression: str
    time_zone: str  # in which `next_run_at` was found
    concurrency: bool  # whether a run may begin while another is active
    suspended: bool
    suspend_reason: str | None  # why it suspended itself; None when somebody did
    next_run_at: datetime | None  # None while it is suspended, and for ever when no due instant is left
    last_job_id: str | None
    last_run_at: datetime | None
    created_at: datetime
    version: int  # counts the changes; whoever changes it names the one that was seen
    runs: int = 0
    cost_micro_usd: int = 0  # of all attempts of its runs that are over

    @property
    def labels(self) -> dict[str, str]:
        """The labels as they are now."""
        return dict(self.spec.labels)


@dataclass(frozen=True, slots=True)
class NewSchedule:
    """A schedule about to be stored; the store gives it its `seq`."""

    id: str
    namespace_id: str
    namespace: str
    namespace_kind: str
    created_by_id: str
    created_by: str
    spec: JobSpec
    expression: str
    time_zone: str
    concurrency: bool
    suspended: bool
    next_run_at: datetime | None
    created_at: datetime
    sealed_secrets: bytes | None = None


class ScheduleEventKind(StrEnum):
    """What may happen to a schedule."""

    CREATED = "created"
    RUN = "run"  # a due run began
    TRIGGERED = "triggered"  # somebody began a run
    SKIPPED = "skipped"  # a due run did not begin; the message says why
    MISSED = "missed"  # due instants passed while no server was there to see them; the message says which
    SUSPENDED = "suspended"
    RESUMED = "resumed"
    RESCHEDULED = "rescheduled"


@dataclass(frozen=True, slots=True)
class ScheduleEvent:
    """One past event of a schedule. `count` of them alike, one after the other; `at` is when the last was."""

    at: datetime
    kind: ScheduleEventKind
    due_at: datetime | None = None
    job_id: str | None = None  # the run that began, or the active one that kept another from beginning
    message: str | None = None
    count: int = 1


@dataclass(frozen=True, slots=True)
class Firing:
    """What shall happen at a due instant: it takes effect once, while the schedule is as it was seen."""

    schedule: Schedule
    due_at: datetime
    next_run_at: datetime | None  # becomes the schedule's
    at: datetime
    job: NewJob | None  # None: the instant is passed over, with `message`
    message: str | None = None
    missed: str | None = None  # told of instants that are passed over together with this one


class Outcome(StrEnum):
    """What became of a firing."""

    STARTED = "started"
    SKIPPED = "skipped"  # passed over: another run is active, or the firing said so
    LOST = "lost"  # somebody else was faster, or the schedule was changed: look again


@dataclass(frozen=True, slots=True)
class Fired:
    """A firing and what became of it."""

    outcome: Outcome
    job: Job | None = None
