"""The Hub's JSON: what clients send and what they need back. The only place where camelCase lives.

Every key's reason stands in the contract of huggingface_hub 2.4.0 (`_jobs_api.py`); unknown request fields are
dropped, as the Hub does.
"""

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from runstead.model.accounts import Caller
from runstead.model.buckets import Output
from runstead.model.costs import MICRO
from runstead.model.errors import Invalid, Unsupported
from runstead.model.hardware import Flavor
from runstead.model.jobs import HistoryEntry, Job, JobSpec
from runstead.model.ports import NetworkGroup
from runstead.model.ports import Ports as ExposedPorts
from runstead.model.volumes import Volume, VolumeKind
from runstead.services.hardware import DEFAULT_FLAVOR
from runstead.services.metrics import Metrics
from runstead.services.specs import MAX_ATTEMPTS
from runstead.xet.hashes import hash_to_text

_LONGEST_TIMEOUT_SECONDS = 10 * 365 * 24 * 3600


def _check_scalar(value: object) -> object:
    if not isinstance(value, str | int | float | None) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError("should be text, a finite number, true, false or null")
    return value


def _check_printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError(f"should have no control characters: {value[:100]!r}")
    return value


Scalar = Annotated[str | bool | int | float | None, BeforeValidator(_check_scalar)]
Text = Annotated[str, Field(max_length=2_000), AfterValidator(_check_printable)]
Count = Annotated[int, Field(strict=True)]  # true is no number, and "3" is text


class _Request(BaseModel):
    model_config = ConfigDict(extra="ignore")


class Ports(_Request):
    """Ports that shall be reachable from outside."""

    ports: list[Count] = []
    portsPublic: list[Count] = []  # noqa: N815

    def value(self) -> ExposedPorts:
        """Return the ports as they were asked for."""
        return ExposedPorts(tuple(self.ports), tuple(self.portsPublic))


class Ssh(_Request):
    """Whether people may log in to the job."""

    enabled: bool = False


class Network(_Request):
    """A group of jobs that reach each other by name."""

    group: str | None = None
    aliases: list[str] = []

    def value(self) -> NetworkGroup | None:
        """Return the group as it was asked for; None without one. Raises Invalid for aliases alone."""
        if self.group is None:
            if self.aliases:
                raise Invalid("aliases are for a group, and there is none", "network.group")
            return None
        return NetworkGroup(self.group, tuple(self.aliases))


class VolumeItem(_Request):
    """One of `volumes` (wire-jobs §12)."""

    type: Literal["bucket", "model", "dataset", "space"] = "model"
    source: Text
    mountPath: Annotated[str, Field(max_length=4_096)]  # noqa: N815
    revision: Text | None = None
    readOnly: bool | None = None  # noqa: N815
    path: Annotated[str, Field(max_length=4_096)] | None = None

    def volume(self) -> Volume:
        """Return the volume that was asked for, as it was written. Repositories are read-only on the Hub too."""
        kind = VolumeKind(self.type)
        return Volume(
            kind=kind,
            source=self.source,
            mount_path=self.mountPath,
            path=self.path or "",
            revision=self.revision,
            read_only=bool(self.readOnly) or kind is not VolumeKind.BUCKET,
        )


class JobCreate(_Request):
    """The body of `POST /api/jobs/{namespace}` (wire-jobs §5)."""

    command: list[str]
    arguments: list[str] = []
    environment: dict[str, Scalar] = {}
    flavor: Text = DEFAULT_FLAVOR
    dockerImage: Text | None = None  # noqa: N815
    spaceId: Text | None = None  # noqa: N815
    secrets: dict[str, Scalar] = {}
    timeoutSeconds: Annotated[Count, Field(ge=1, le=_LONGEST_TIMEOUT_SECONDS)] | None = None  # noqa: N815
    attempts: Annotated[Count, Field(ge=1, le=MAX_ATTEMPTS)] | None = None
    labels: dict[str, str] = {}
    volumes: list[VolumeItem] | None = None
    expose: Ports | None = None
    ssh: Ssh | None = None
    network: Network | None = None
    resourceGroupId: Text | None = None  # noqa: N815
    arch: Literal["amd64", "arm64"] | None = None
    tags: list[Text] = []

    def spec(self, default_timeout_seconds: int) -> JobSpec:
        """Return the job that was asked for. Raises Unsupported for what this server does not have yet."""
        self._refuse_missing()
        return JobSpec(
            command=tuple(self.command),
            arguments=tuple(self.arguments),
            environment=texts(self.environment),
            flavor=self.flavor,
            docker_image=self.dockerImage,
            space_id=self.spaceId,
            timeout_seconds=self.timeoutSeconds or default_timeout_seconds,
            attempts=self.attempts or 1,
            labels=self.labels,
            resource_group_id=self.resourceGroupId,
            arch=self.arch,
            tags=tuple(self.tags),
            volumes=tuple(item.volume() for item in self.volumes or ()),
            ports=self.expose.value() if self.expose else ExposedPorts(),
            network=self.network.value() if self.network else None,
        )

    def _refuse_missing(self) -> None:
        missing = {
            "ssh": self.ssh is not None and self.ssh.enabled,
        }
        for field, wanted in missing.items():
            if wanted:
                raise Unsupported(
                    f"{field}: this version of Runstead does not have {_FEATURES[field]} yet, so the job was not "
                    f"created; submit it without {field!r}"
                )


_FEATURES = {
    "ssh": "SSH into jobs",
}


class LabelsUpdate(_Request):
    """The body of `PUT /api/jobs/{namespace}/{id}/labels`."""

    labels: dict[str, str]


def texts(values: Mapping[str, Scalar]) -> dict[str, str]:
    """Return variables as text; the client's API lets numbers, booleans and nulls through (wire-jobs §5)."""
    return {name: value if isinstance(value, str) else _text(value) for name, value in values.items()}


def _text(value: bool | float | None) -> str:
    return "" if value is None else json.dumps(value)


def instant(at: datetime | None) -> str | None:
    """Return a time as the clients parse it: it must end in `Z`."""
    return None if at is None else at.astimezone(UTC).isoformat("T", "milliseconds").removesuffix("+00:00") + "Z"


def job_json(job: Job, message: str | None, now: datetime, expose_urls: Sequence[str] = ()) -> dict[str, Any]:
    """Return the job object (wire-jobs §6). `expose_urls` is where its ports are reached, in their order."""
    status: dict[str, Any] = {"stage": job.stage, "message": message, "failureCount": job.failure_count}
    if job.failure_class is not None and job.stage.is_terminal:
        status["failureClass"] = job.failure_class
    if job.exit_code is not None and job.stage.is_terminal:
        status["exitCode"] = job.exit_code
    found: dict[str, Any] = {
        "type": "job",
        "id": job.id,
        "owner": {"id": job.namespace_id, "name": job.namespace, "type": job.namespace_kind},
        "createdBy": {"id": job.created_by_id, "name": job.created_by},
        "createdAt": instant(job.created_at),
        "startedAt": instant(job.started_at),
        "finishedAt": instant(job.finished_at),
        "status": status,
        **spec_json(job.spec),
        "attempt": job.attempt,
        "durations": _durations(job, now),
        "initiator": {"type": job.initiator.type, "id": job.initiator.id},
        "cost": cost_json(job.cost_at(now)),
    }
    if job.spec.ports:
        status["exposeUrls"] = expose_urls
    if job.initiator.name is not None:
        found["initiator"]["name"] = job.initiator.name
    return found


def cost_json(micro_usd: int) -> dict[str, float]:
    """Return an amount in the units of the hardware list. The Hub's objects have none; the shape is ours."""
    return {"microUSD": micro_usd, "USD": micro_usd / MICRO}


def spec_json(spec: JobSpec) -> dict[str, Any]:
    """Return what was asked for, as jobs and schedules show it."""
    found: dict[str, Any] = {
        "command": spec.command,
        "arguments": spec.arguments,
        "environment": spec.environment,
        "secrets": spec.secret_names,
        "flavor": spec.flavor,
        "labels": spec.labels,
        "volumes": [_volume_json(volume) for volume in spec.asked_volumes],
        "timeout": spec.timeout_seconds,
        "retry": spec.attempts - 1,
        "tags": spec.tags,
    }
    if spec.ports:
        found["expose"] = {"ports": spec.ports.exposed, "portsPublic": spec.ports.public}
    if spec.network is not None:
        found["network"] = {"group": spec.network.name, "aliases": spec.network.aliases}
    if spec.docker_image is not None:
        found["dockerImage"] = spec.docker_image
    if spec.space_id is not None:
        found["spaceId"] = spec.space_id
    if spec.arch is not None:
        found["arch"] = spec.arch
    if spec.resource_group_id is not None:
        found["resourceGroupId"] = spec.resource_group_id
        found["resourceGroup"] = {"id": spec.resource_group_id, "name": spec.resource_group_id}
    return found


def _volume_json(volume: Volume) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": volume.kind,
        "source": volume.source,
        "mountPath": volume.mount_path,
        "readOnly": volume.read_only,
    }
    if volume.revision is not None:
        found["revision"] = volume.revision
    if volume.path:
        found["path"] = volume.path
    return found


def _durations(job: Job, now: datetime) -> dict[str, int]:
    end = job.finished_at or now
    began = job.started_at
    scheduling = ((began or end) - job.created_at).total_seconds()
    running = (end - began).total_seconds() if began else 0
    return {
        "schedulingSecs": max(int(scheduling), 0),
        "runningSecs": max(int(running), 0),
        "totalSecs": max(int((end - job.created_at).total_seconds()), 0),
    }


def history_json(entry: HistoryEntry) -> dict[str, Any]:
    """Return one past change of a job. The Hub has no such object; the shape is ours."""
    return {
        "at": instant(entry.at),
        "attempt": entry.attempt,
        "stage": entry.stage,
        "message": entry.message,
        "failureClass": entry.failure_class,
    }


def output_json(output: Output) -> dict[str, Any]:
    """Return a file that a job wrote. The Hub has no such object; names are those of a bucket's listing."""
    return {
        "bucket": output.bucket,
        "path": output.path,
        "size": output.size,
        "xetHash": hash_to_text(output.file_hash),
        "attempt": output.attempt,
    }


def flavor_json(flavor: Flavor) -> dict[str, Any]:
    """Return a row of `GET /api/jobs/hardware` (wire-jobs §10)."""
    accelerator = flavor.accelerator
    return {
        "name": flavor.name,
        "prettyName": flavor.pretty_name,
        "cpu": f"{flavor.cpu_millicores / 1000:g} vCPU",
        "ram": f"{flavor.memory_bytes / 2**30:.3g} GB",
        "ephemeralStorage": f"{flavor.disk_bytes / 2**30:.0f} GB" if flavor.disk_bytes is not None else None,
        "accelerator": None
        if accelerator is None
        else {
            "type": accelerator.type,
            "model": accelerator.model,
            "quantity": str(accelerator.quantity),
            "vram": f"{accelerator.memory_bytes * accelerator.quantity / 2**30:.0f} GB",
            "manufacturer": accelerator.manufacturer,
        },
        "unitCostMicroUSD": flavor.price_micro_usd,
        "unitCostUSD": flavor.price_micro_usd / MICRO,
        "unitLabel": "minute",
    }


def metrics_json(metrics: Metrics, replica: str) -> dict[str, Any]:
    """Return one sample (wire-jobs §9.5). Rates are bits per second; totals are never zero, clients divide by them."""
    return {
        "cpu_usage_pct": metrics.cpu_percent,
        "cpu_millicores": metrics.cpu_millicores,
        "memory_used_bytes": metrics.memory_used_bytes,
        "memory_total_bytes": max(metrics.memory_total_bytes, 1),
        "rx_bps": round(metrics.rx_bytes_per_second * 8),
        "tx_bps": round(metrics.tx_bytes_per_second * 8),
        "gpus": {
            name: {
                "utilization": gpu.utilization_percent,
                "memory_used_bytes": gpu.memory_used_bytes,
                "memory_total_bytes": max(gpu.memory_total_bytes, 1),
            }
            for name, gpu in metrics.gpus.items()
        },
        "replica": replica,
    }


def whoami_json(caller: Caller, base_url: str) -> dict[str, Any]:
    """Return the answer of `GET /api/whoami-v2` (wire-jobs §3.1)."""
    user, token = caller.user, caller.token
    avatar = f"{base_url}/avatar.svg"
    found: dict[str, Any] = {
        "type": "user",
        "id": user.id,
        "name": user.name,
        "fullname": user.full_name,
        "email": user.email,
        "emailVerified": user.email is not None,
        "canPay": False,
        "isPro": False,
        "avatarUrl": avatar,
        "periodEnd": None,
        "orgs": [
            {
                "type": "org",
                "id": member.organization.id,
                "name": member.organization.name,
                "fullname": member.organization.full_name,
                "avatarUrl": avatar,
                "roleInOrg": member.role,
                "canPay": False,
                "periodEnd": None,
            }
            for member in caller.memberships
        ],
        "auth": {
            "type": "access_token",
            "accessToken": {
                "displayName": token.name,
                "role": token.role,
                "createdAt": instant(token.created_at),
            },
        },
    }
    if token.scopes:
        ids = {user.name: user.id} | {m.organization.name: m.organization.id for m in caller.memberships}
        found["auth"]["accessToken"]["fineGrained"] = {
            "global": [],
            "scoped": [
                {
                    "entity": {
                        "_id": ids.get(name, ""),
                        "name": name,
                        "type": "user" if name == user.name else "org",
                    },
                    "permissions": [f"job.{permission}"],
                }
                for name, permission in token.scopes
            ],
        }
    if token.expires_at is not None:
        found["auth"]["expiresAt"] = instant(token.expires_at)
    return found
