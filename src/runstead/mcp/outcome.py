"""What a call gives back: text for the model, and the same as values with a schema.

Names follow the official Hugging Face tool where it has the thing, so that hosts written for one read the other.
Values of variables and secrets are never in it, their names are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, Field


class Status(BaseModel):
    """Where a job stands."""

    stage: str
    message: str | None = None
    failure_class: str | None = None
    exit_code: int | None = None
    expose_urls: list[str] | None = None


class Owner(BaseModel):
    """A user or an organization."""

    name: str
    type: str | None = None


class VolumeOutput(BaseModel):
    """A folder of a job."""

    type: str
    source: str
    mount_path: str
    path: str | None = None
    revision: str | None = None
    read_only: bool | None = None


class SpecOutput(BaseModel):
    """What was asked for."""

    docker_image: str | None = None
    space_id: str | None = None
    command: list[str] | None = None
    arguments: list[str] | None = None
    environment_variable_names: list[str] = []
    secret_names: list[str] = []
    flavor: str | None = None
    timeout_seconds: float | None = None
    volumes: list[VolumeOutput] | None = None
    labels: dict[str, str] | None = None


class JobOutput(SpecOutput):
    """A job."""

    id: str
    url: str
    owner: Owner
    created_by: str | None = None
    created_at: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    running_seconds: float | None = None
    cost_usd: float | None = None
    status: Status


class ScheduledJobOutput(BaseModel):
    """A schedule."""

    id: str
    owner: Owner
    schedule: str | None = None
    suspended: bool = False
    suspend_reason: str | None = None
    concurrency: bool | None = None
    last_run: str | None = None
    last_job_id: str | None = None
    next_run: str | None = None
    created_at: str | None = None
    cost_usd: float | None = None
    job_spec: SpecOutput


class ScriptOutput(BaseModel):
    """How a script gets to its job."""

    transport: Literal["bucket", "environment", "url", "path"]
    reason: str | None = Field(default=None, description="Why not through the bucket.")
    results: str | None = Field(default=None, description="Where files that the job writes to /artifacts are kept.")


class UsageOutcome(BaseModel):
    """What there is."""

    kind: Literal["usage"] = "usage"
    available_operations: list[str]
    instructions: str


class HelpOutcome(BaseModel):
    """How to call one operation."""

    kind: Literal["help"] = "help"
    operation: str
    reason: Literal["requested", "missing_arguments"]
    instructions: str


class JobOutcome(BaseModel):
    """A job that was submitted, waited for or changed."""

    kind: Literal["job"] = "job"
    job: JobOutput
    script: ScriptOutput | None = None
    logs: list[str] | None = None
    logs_finished: bool | None = None
    logs_truncated: bool | None = None


class JobsOutcome(BaseModel):
    """A list of jobs."""

    kind: Literal["jobs"] = "jobs"
    jobs: list[JobOutput]
    total_jobs: int
    more: bool = False


class LogsOutcome(BaseModel):
    """Lines of a log."""

    kind: Literal["logs"] = "logs"
    job_id: str
    stage: str
    lines: list[str]
    finished: bool
    truncated: bool


class Inspection(BaseModel):
    """What was found of one job."""

    job_id: str
    status: Literal["success", "error"]
    job: JobOutput | None = None
    message: str | None = None


class InspectionsOutcome(BaseModel):
    """What was found of several jobs."""

    kind: Literal["inspections"] = "inspections"
    requested_job_ids: list[str]
    inspections: list[Inspection]


class ScheduledJobOutcome(BaseModel):
    """A schedule."""

    kind: Literal["scheduled_job"] = "scheduled_job"
    scheduled_job: ScheduledJobOutput
    script: ScriptOutput | None = None


class ScheduledJobsOutcome(BaseModel):
    """A list of schedules."""

    kind: Literal["scheduled_jobs"] = "scheduled_jobs"
    scheduled_jobs: list[ScheduledJobOutput]
    total_scheduled_jobs: int


class AcknowledgementOutcome(BaseModel):
    """It is done."""

    kind: Literal["acknowledgement"] = "acknowledgement"
    resource_id: str
    action: Literal["deleted", "suspended", "resumed"]
    message: str


class GpuOutput(BaseModel):
    """What a job uses of one GPU."""

    id: str
    utilization_percent: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None


class StatsOutcome(BaseModel):
    """What a running job uses."""

    kind: Literal["stats"] = "stats"
    job_id: str
    cpu_percent: float
    cpu_cores: float
    memory_used_bytes: int
    memory_total_bytes: int
    received_bits_per_second: float
    sent_bits_per_second: float
    gpus: list[GpuOutput]


class FlavorOutput(BaseModel):
    """A size of job."""

    name: str
    pretty_name: str | None = None
    cpu: str | None = None
    memory: str | None = None
    disk: str | None = None
    accelerator: str | None = None
    usd_per_minute: float


class HardwareOutcome(BaseModel):
    """The sizes of jobs."""

    kind: Literal["hardware"] = "hardware"
    flavors: list[FlavorOutput]


class ErrorOutcome(BaseModel):
    """It was not done."""

    kind: Literal["error"] = "error"
    code: Literal["unknown_operation", "validation", "refused", "unreachable", "internal"]
    status: int | None = Field(default=None, description="The HTTP status of the refusal.")
    message: str


class Result(BaseModel):
    """The structured output of `hf_jobs`."""

    operation: str | None = None
    outcome: (
        UsageOutcome
        | HelpOutcome
        | JobOutcome
        | JobsOutcome
        | LogsOutcome
        | InspectionsOutcome
        | ScheduledJobOutcome
        | ScheduledJobsOutcome
        | AcknowledgementOutcome
        | StatsOutcome
        | HardwareOutcome
        | ErrorOutcome
    ) = Field(discriminator="kind")
    next_steps: list[str] = Field(default=[], description="What to call or to change next.")
    total_results: int = 0
    results_shared: int = 0


class Identity(BaseModel):
    """The structured output of `hf_whoami`."""

    authenticated: bool
    endpoint: str
    name: str | None = None
    fullname: str | None = None
    email: str | None = None
    organizations: list[str] = []
    token_name: str | None = None
    token_role: str | None = None
    jobs_namespaces: list[str] = Field(default=[], description="Where this token may start jobs.")


@dataclass(frozen=True, slots=True)
class Link:
    """A resource that belongs to the answer."""

    uri: str
    name: str
    description: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What one call gives back."""

    text: str
    structured: dict[str, Any]
    is_error: bool = False
    links: Sequence[Link] = field(default=())


def schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON schema of an output."""
    return model.model_json_schema(mode="serialization")
