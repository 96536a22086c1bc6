"""The JSON of schedules (wire-jobs §17)."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from runstead.api import wire
from runstead.model.errors import Invalid
from runstead.model.schedules import Schedule, ScheduleEvent

Expression = Annotated[str, Field(max_length=500)]


class ScheduleCreate(BaseModel):
    """The body of `POST /api/scheduled-jobs/{namespace}`."""

    model_config = ConfigDict(extra="ignore")

    jobSpec: wire.JobCreate  # noqa: N815
    schedule: Expression
    concurrency: bool | None = None
    suspend: bool | None = None

    def refuse_what_needs_a_person(self) -> None:
        """Raise Invalid for what the Hub offers for single jobs only."""
        if self.jobSpec.ssh is not None and self.jobSpec.ssh.enabled:
            raise Invalid("a schedule's jobs have no SSH: run a job by itself for that", "jobSpec.ssh")
        if self.jobSpec.network is not None and self.jobSpec.network.group:
            raise Invalid("a schedule's jobs join no network group: run jobs by themselves", "jobSpec.network")


class ScheduleUpdate(BaseModel):
    """The body of `POST /api/scheduled-jobs/{namespace}/{id}/schedule`."""

    model_config = ConfigDict(extra="ignore")

    schedule: Expression


def schedule_json(schedule: Schedule, cost_micro_usd: int) -> dict[str, Any]:
    """Return the scheduled object."""
    last: dict[str, Any] | None = None
    if schedule.last_job_id is not None:
        last = {"id": schedule.last_job_id, "at": wire.instant(schedule.last_run_at)}
    found: dict[str, Any] = {
        "type": "scheduled-job",
        "id": schedule.id,
        "owner": {"id": schedule.namespace_id, "name": schedule.namespace, "type": schedule.namespace_kind},
        "createdAt": wire.instant(schedule.created_at),
        "createdBy": {"id": schedule.created_by_id, "name": schedule.created_by},
        "initiator": {"type": "user", "id": schedule.created_by_id, "name": schedule.created_by},
        "jobSpec": wire.spec_json(schedule.spec),
        "schedule": schedule.expression,
        "timeZone": schedule.time_zone,
        "suspend": schedule.suspended,
        "concurrency": schedule.concurrency,
        "status": {"lastJob": last, "nextJobRunAt": wire.instant(schedule.next_run_at)},
        "runs": schedule.runs,
        "cost": wire.cost_json(cost_micro_usd),
    }
    if schedule.suspend_reason is not None:
        found["suspendReason"] = schedule.suspend_reason
    return found


def event_json(event: ScheduleEvent) -> dict[str, Any]:
    """Return one past event of a schedule. The Hub has no such object; the shape is ours."""
    return {
        "at": wire.instant(event.at),
        "kind": event.kind,
        "dueAt": wire.instant(event.due_at),
        "jobId": event.job_id,
        "message": event.message,
        "count": event.count,
    }
