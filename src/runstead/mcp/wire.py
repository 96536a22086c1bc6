"""Between the tool's words and the Hub's JSON: bodies of requests, and what is read out of answers."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from runstead.mcp.arguments import Machine, VolumeMount
from runstead.mcp.outcome import FlavorOutput, JobOutput, Owner, ScheduledJobOutput, SpecOutput, Status, VolumeOutput

TERMINAL = frozenset({"COMPLETED", "CANCELED", "ERROR", "DELETED"})
_SPACES = ("https://huggingface.co/spaces/", "https://hf.co/spaces/", "huggingface.co/spaces/", "hf.co/spaces/")
_TOKEN_WORDS = ("$HF_TOKEN", "${HF_TOKEN}")

Json = Mapping[str, Any]


def job_spec(
    wanted: Machine,
    image: str,
    command: Sequence[str],
    token: str,
    *,
    environment: Mapping[str, str] | None = None,
    volumes: Sequence[VolumeMount] = (),
) -> dict[str, Any]:
    """Return the body that creates a job, or the `jobSpec` of a schedule. `environment` and `volumes` are added."""
    space = next((image.removeprefix(prefix) for prefix in _SPACES if image.startswith(prefix)), None)
    labels = wanted.labels | ({"name": wanted.name} if wanted.name is not None else {})
    mounts = [_volume(volume) for volume in (*wanted.volumes, *volumes)]
    body: dict[str, Any] = {
        "command": list(command),
        "arguments": [],
        "environment": {**wanted.env, **(environment or {})},
        "flavor": wanted.flavor,
        "timeoutSeconds": max(int(wanted.timeout), 1),
        **({"dockerImage": image} if space is None else {"spaceId": space}),
        **({"secrets": secrets(wanted, token)} if wanted.secrets else {}),
        **({"labels": labels} if labels else {}),
        **({"volumes": mounts} if mounts else {}),
    }
    if wanted.attempts is not None:
        body["attempts"] = wanted.attempts
    if wanted.expose:
        body["expose"] = {"ports": wanted.expose, "portsPublic": []}
    return body


def secrets(wanted: Machine, token: str) -> dict[str, str]:
    """Return the secrets with the caller's own token where it was referred to."""
    return {name: token if value in _TOKEN_WORDS else value for name, value in wanted.secrets.items()}


def _volume(volume: VolumeMount) -> dict[str, Any]:
    found: dict[str, Any] = {"type": volume.type, "source": volume.source, "mountPath": volume.mount_path}
    optional = {"path": volume.path, "revision": volume.revision, "readOnly": volume.read_only}
    return found | {key: value for key, value in optional.items() if value is not None}


def part(thing: Json, key: str) -> Json:
    """Return an object inside of one; an empty one where it is missing or null."""
    return cast("Json", thing.get(key) or {})


def parts(thing: Json, key: str) -> list[Json]:
    """Return the objects of a list inside of an object."""
    return cast("list[Json]", thing.get(key) or [])


def is_over(job: Json) -> bool:
    """Say whether a job will not change its stage any more."""
    return job["status"]["stage"] in TERMINAL


def job_output(job: Json, endpoint: str) -> JobOutput:
    """Return a job as the tool shows it."""
    status = job["status"]
    durations = part(job, "durations")
    return JobOutput(
        id=job["id"],
        url=f"{endpoint}/jobs/{job['owner']['name']}/{job['id']}",
        owner=_owner(job),
        created_by=part(job, "createdBy").get("name"),
        created_at=job.get("createdAt"),
        started_at=job.get("startedAt"),
        finished_at=job.get("finishedAt"),
        running_seconds=durations.get("runningSecs"),
        cost_usd=cost_of(job),
        status=Status(
            stage=status["stage"],
            message=status.get("message"),
            failure_class=status.get("failureClass"),
            exit_code=status.get("exitCode"),
            expose_urls=status.get("exposeUrls"),
        ),
        **_spec(job, job.get("timeout")),
    )


def scheduled_output(scheduled: Json) -> ScheduledJobOutput:
    """Return a schedule as the tool shows it."""
    status = part(scheduled, "status")
    last = part(status, "lastJob")
    spec = part(scheduled, "jobSpec")
    return ScheduledJobOutput(
        id=scheduled["id"],
        owner=_owner(scheduled),
        schedule=scheduled.get("schedule"),
        suspended=bool(scheduled.get("suspend")),
        suspend_reason=scheduled.get("suspendReason"),
        concurrency=scheduled.get("concurrency"),
        last_run=last.get("at"),
        last_job_id=last.get("id"),
        next_run=status.get("nextJobRunAt"),
        created_at=scheduled.get("createdAt"),
        cost_usd=cost_of(scheduled),
        job_spec=SpecOutput(**_spec(spec, spec.get("timeout") or spec.get("timeoutSeconds"))),
    )


def flavor_output(flavor: Json) -> FlavorOutput:
    """Return a row of the hardware as the tool shows it."""
    accelerator = part(flavor, "accelerator")
    shown = None
    if accelerator:
        shown = (
            f"{accelerator['quantity']}x {accelerator['manufacturer']} {accelerator['model']}, {accelerator['vram']}"
        )
    return FlavorOutput(
        name=flavor["name"],
        pretty_name=flavor.get("prettyName"),
        cpu=flavor.get("cpu"),
        memory=flavor.get("ram"),
        disk=flavor.get("ephemeralStorage"),
        accelerator=shown,
        usd_per_minute=flavor.get("unitCostUSD") or 0,
    )


def cost_of(thing: Json) -> float | None:
    """Return what a job or schedule has cost, where the server says it."""
    return part(thing, "cost").get("USD")


def _owner(thing: Json) -> Owner:
    return Owner(name=thing["owner"]["name"], type=thing["owner"].get("type"))


def _spec(spec: Json, timeout: float | None) -> dict[str, Any]:
    return {
        "docker_image": spec.get("dockerImage"),
        "space_id": spec.get("spaceId"),
        "command": spec.get("command"),
        "arguments": spec.get("arguments") or None,
        "environment_variable_names": sorted(spec.get("environment") or ()),
        "secret_names": sorted(spec.get("secrets") or ()),
        "flavor": spec.get("flavor"),
        "timeout_seconds": timeout,
        "volumes": [_volume_output(volume) for volume in parts(spec, "volumes")] or None,
        "labels": spec.get("labels") or None,
    }


def _volume_output(volume: Json) -> VolumeOutput:
    return VolumeOutput(
        type=volume.get("type", "model"),
        source=volume["source"],
        mount_path=volume["mountPath"],
        path=volume.get("path"),
        revision=volume.get("revision"),
        read_only=volume.get("readOnly"),
    )
