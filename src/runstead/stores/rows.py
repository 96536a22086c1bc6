"""Jobs, accounts and tokens as rows, and rows as frozen values."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from sqlalchemy import Column

from runstead.model.accounts import Namespace, NamespaceKind, Organization, Permission, Token, TokenRole, User
from runstead.model.costs import highest_cost_micro_usd
from runstead.model.jobs import (
    CancelReason,
    FailureClass,
    HistoryEntry,
    Initiator,
    Job,
    JobSpec,
    NewJob,
    Phase,
    Reservation,
    Stage,
)
from runstead.model.ports import NetworkGroup, Ports
from runstead.model.sandboxes import Mode, SandboxSpec
from runstead.model.volumes import Volume, VolumeKind
from runstead.stores.database import Row
from runstead.stores.tables import NOBODY, accounts, job_history, jobs, tokens

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_decode = json.JSONDecoder().raw_decode


def instant_to(at: datetime) -> int:
    """Return an aware instant as it is stored."""
    return (at - _EPOCH) // _MICROSECOND


def instant_from(stored: int) -> datetime:
    """Return a stored instant."""
    return _EPOCH + timedelta(microseconds=stored)


def _optional_instant(stored: int | None) -> datetime | None:
    return None if stored is None else _EPOCH + timedelta(microseconds=stored)


def json_to(value: Any) -> str:
    """Return a JSON text; it is ASCII, so that no database can object to a character in it."""
    return json.dumps(value, separators=(",", ":"))


def json_from(stored: str) -> Any:
    """Return the value of a text of `json_to`, which has no blanks that would have to be looked for."""
    return _decode(stored)[0]


# What `job_from` takes, in its order.
JOB_COLUMNS: tuple[Column[Any], ...] = (
    jobs.c.seq,
    jobs.c.id,
    jobs.c.namespace_id,
    jobs.c.namespace,
    jobs.c.namespace_kind,
    jobs.c.created_by_id,
    jobs.c.created_by,
    jobs.c.spec,
    jobs.c.labels,
    jobs.c.stage,
    jobs.c.phase,
    jobs.c.message,
    jobs.c.created_at,
    jobs.c.initiator_type,
    jobs.c.initiator_id,
    jobs.c.initiator_name,
    jobs.c.attempt,
    jobs.c.failure_count,
    jobs.c.failure_class,
    jobs.c.exit_code,
    jobs.c.started_at,
    jobs.c.finished_at,
    jobs.c.cancel_requested_at,
    jobs.c.not_before,
    jobs.c.executor,
    jobs.c.handle,
    jobs.c.reservation,
    jobs.c.cancel_reason,
    jobs.c.price_micro_usd,
    jobs.c.cost_micro_usd,
)


def job_from(row: Row) -> Job:
    """Return the job in a row of `JOB_COLUMNS`; further columns are ignored."""
    return Job(
        seq=row[0],
        id=row[1],
        namespace_id=row[2],
        namespace=row[3],
        namespace_kind=row[4],
        created_by_id=row[5],
        created_by=row[6],
        spec=spec_from(row[7], row[8]),
        stage=Stage(row[9]),
        phase=Phase(row[10]),
        message=row[11],
        created_at=instant_from(row[12]),
        initiator=Initiator(row[13], row[14], row[15]),
        attempt=row[16],
        failure_count=row[17],
        failure_class=None if row[18] is None else FailureClass(row[18]),
        exit_code=row[19],
        started_at=_optional_instant(row[20]),
        finished_at=_optional_instant(row[21]),
        cancel_requested_at=_optional_instant(row[22]),
        not_before=_optional_instant(row[23]),
        executor=row[24],
        handle=None if row[25] is None else json_from(row[25]),
        reservation=None if row[26] is None else reservation_from(row[26]),
        cancel_reason=CancelReason.ASKED if row[27] is None else CancelReason(row[27]),
        price_micro_usd=row[28],
        cost_micro_usd=row[29],
    )


def job_to(job: NewJob, alike: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the columns of a job about to be stored; `alike` are those of one with the same specification."""
    return {
        "id": job.id,
        "namespace_id": job.namespace_id,
        "namespace": job.namespace,
        "namespace_kind": job.namespace_kind,
        "created_by_id": job.created_by_id,
        "created_by": job.created_by,
        "spec": spec_to(job.spec) if alike is None else alike["spec"],
        "labels": json_to(dict(job.spec.labels)) if alike is None else alike["labels"],
        "stage": Stage.SCHEDULING.value,
        "phase": Phase.WAITING.value,
        "message": job.message,
        "created_at": instant_to(job.created_at),
        "initiator_type": job.initiator.type,
        "initiator_id": job.initiator.id,
        "initiator_name": job.initiator.name,
        "attempt": 1,
        "failure_count": 0,
        "flavor": job.spec.flavor,
        "version": 1,
        "lease_owner": NOBODY,
        "idempotency_key": job.idempotency_key,
        "price_micro_usd": job.price_micro_usd,
        "reserved_micro_usd": highest_cost_micro_usd(job.price_micro_usd, job.spec.timeout_seconds, job.spec.attempts),
    }


def job_as_stored(job: NewJob, seq: int) -> Job:
    """Return what reading the job just stored would give."""
    return Job(
        seq=seq,
        id=job.id,
        namespace_id=job.namespace_id,
        namespace=job.namespace,
        namespace_kind=job.namespace_kind,
        created_by_id=job.created_by_id,
        created_by=job.created_by,
        spec=job.spec,
        stage=Stage.SCHEDULING,
        phase=Phase.WAITING,
        message=job.message,
        created_at=job.created_at,
        initiator=job.initiator,
        price_micro_usd=job.price_micro_usd,
    )


def spec_to(spec: JobSpec) -> str:
    """Return the JSON text of a specification without its labels, which change and have their own column.

    Fields with their usual value are left out; what is added to `JobSpec` needs a line here and one below.
    """
    value: dict[str, Any] = {"command": spec.command, "flavor": spec.flavor, "timeout": spec.timeout_seconds}
    if spec.docker_image is not None:
        value["image"] = spec.docker_image
    if spec.space_id is not None:
        value["space"] = spec.space_id
    if spec.arguments:
        value["arguments"] = spec.arguments
    if spec.environment:
        value["environment"] = dict(spec.environment)
    if spec.secret_names:
        value["secret_names"] = spec.secret_names
    if spec.attempts != 1:
        value["attempts"] = spec.attempts
    if spec.resource_group_id is not None:
        value["resource_group"] = spec.resource_group_id
    if spec.arch is not None:
        value["arch"] = spec.arch
    if spec.tags:
        value["tags"] = spec.tags
    if spec.volumes:
        value["volumes"] = [volume_to(volume) for volume in spec.volumes]
    if spec.ports:
        value["ports"] = [spec.ports.exposed, spec.ports.public]
    if spec.network is not None:
        value["network"] = [spec.network.name, spec.network.aliases]
    if spec.sandbox is not None:
        value["sandbox"] = sandbox_to(spec.sandbox)
    return json_to(value)


@lru_cache(maxsize=128)  # a job is read several times in its life, and many at once often have the same
def spec_from(stored: str, labels: str) -> JobSpec:
    """Return the specification in its two columns."""
    value = json_from(stored)
    get = value.get
    return JobSpec(
        command=tuple(value["command"]),
        flavor=value["flavor"],
        docker_image=get("image"),
        space_id=get("space"),
        arguments=tuple(get("arguments", ())),
        environment=get("environment", {}),
        secret_names=tuple(get("secret_names", ())),
        timeout_seconds=value["timeout"],
        attempts=get("attempts", 1),
        labels=json_from(labels),
        resource_group_id=get("resource_group"),
        arch=get("arch"),
        tags=tuple(get("tags", ())),
        volumes=tuple(volume_from(volume) for volume in get("volumes", ())),
        ports=Ports(*map(tuple, get("ports", ()))),
        network=NetworkGroup(value["network"][0], tuple(value["network"][1])) if "network" in value else None,
        sandbox=sandbox_from(value["sandbox"]) if "sandbox" in value else None,
    )


def sandbox_to(sandbox: SandboxSpec) -> dict[str, Any]:
    """Return what makes a job a sandbox, as it stands in a specification."""
    value: dict[str, Any] = {"mode": sandbox.mode.value}
    if sandbox.idle_seconds is not None:
        value["idle"] = sandbox.idle_seconds
    if sandbox.capacity is not None:
        value["capacity"] = sandbox.capacity
    if sandbox.egress is not None:
        value["egress"] = sandbox.egress
    if sandbox.snapshots:
        value["snapshots"] = sandbox.snapshots
    if sandbox.unmounted:
        value["unmounted"] = [volume_to(volume) for volume in sandbox.unmounted]
    return value


def sandbox_from(value: Mapping[str, Any]) -> SandboxSpec:
    """Return what makes a job a sandbox."""
    get = value.get
    unmounted = tuple(volume_from(volume) for volume in get("unmounted", ()))
    egress = tuple(value["egress"]) if "egress" in value else None
    snapshots = tuple(get("snapshots", ()))
    return SandboxSpec(Mode(value["mode"]), get("idle"), get("capacity"), unmounted, egress, snapshots)


def volume_to(volume: Volume) -> dict[str, Any]:
    """Return a volume as it stands in a specification; fields with their usual value are left out."""
    value: dict[str, Any] = {"kind": volume.kind.value, "source": volume.source, "at": volume.mount_path}
    if volume.path:
        value["path"] = volume.path
    if volume.revision is not None:
        value["revision"] = volume.revision
    if volume.read_only:
        value["read_only"] = True
    if volume.source_id is not None:
        value["id"] = volume.source_id
    return value


def volume_from(value: Mapping[str, Any]) -> Volume:
    """Return a stored volume."""
    get = value.get
    return Volume(
        kind=VolumeKind(value["kind"]),
        source=value["source"],
        mount_path=value["at"],
        path=get("path", ""),
        revision=get("revision"),
        read_only=get("read_only", False),
        source_id=get("id"),
    )


def reservation_to(reservation: Reservation) -> str:
    """Return the JSON text of a reservation."""
    return json_to({"cpu": reservation.cpu_millicores, "memory": reservation.memory_bytes, "gpus": reservation.gpu_ids})


def reservation_from(stored: str) -> Reservation:
    """Return a stored reservation."""
    value = json.loads(stored)
    return Reservation(value["cpu"], value["memory"], tuple(value["gpus"]))


HISTORY_COLUMNS: tuple[Column[Any], ...] = (
    job_history.c.at,
    job_history.c.attempt,
    job_history.c.stage,
    job_history.c.phase,
    job_history.c.message,
    job_history.c.failure_class,
)


def history_from(job_id: str, row: Row) -> HistoryEntry:
    """Return the history entry in a row of `HISTORY_COLUMNS`."""
    at, attempt, stage, phase, message, failure = row
    return HistoryEntry(
        job_id,
        instant_from(at),
        attempt,
        Stage(stage),
        Phase(phase),
        message,
        None if failure is None else FailureClass(failure),
    )


ACCOUNT_COLUMNS: tuple[Column[Any], ...] = tuple(accounts.c)


def user_to(user: User) -> dict[str, Any]:
    """Return the columns of a user."""
    return {
        "id": user.id,
        "name": user.name,
        "kind": NamespaceKind.USER.value,
        "full_name": user.full_name,
        "created_at": instant_to(user.created_at),
        "email": user.email,
        "is_admin": user.is_admin,
    }


def organization_to(organization: Organization) -> dict[str, Any]:
    """Return the columns of an organization."""
    return {
        "id": organization.id,
        "name": organization.name,
        "kind": NamespaceKind.ORG.value,
        "full_name": organization.full_name,
        "created_at": instant_to(organization.created_at),
        "email": None,
        "is_admin": False,
    }


def user_from(row: Row) -> User:
    """Return the user in a row of `ACCOUNT_COLUMNS`."""
    id_, name, _, full_name, created_at, email, is_admin = row
    return User(id_, name, full_name, bool(is_admin), instant_from(created_at), email)


def organization_from(row: Row) -> Organization:
    """Return the organization in a row of `ACCOUNT_COLUMNS`."""
    id_, name, _, full_name, created_at, _, _ = row
    return Organization(id_, name, full_name, instant_from(created_at))


def namespace_from(row: Row) -> Namespace:
    """Return the namespace in a row of `ACCOUNT_COLUMNS`."""
    return Namespace(row[0], row[1], NamespaceKind(row[2]))


TOKEN_COLUMNS: tuple[Column[Any], ...] = (
    tokens.c.id,
    tokens.c.user_id,
    tokens.c.name,
    tokens.c.role,
    tokens.c.created_at,
    tokens.c.hint,
    tokens.c.expires_at,
    tokens.c.scopes,
)


def token_to(token: Token, digest: bytes) -> dict[str, Any]:
    """Return the columns of a token."""
    return {
        "id": token.id,
        "digest": digest,
        "user_id": token.user_id,
        "name": token.name,
        "role": token.role.value,
        "created_at": instant_to(token.created_at),
        "hint": token.hint,
        "expires_at": None if token.expires_at is None else instant_to(token.expires_at),
        "scopes": json_to([[name, permission.value] for name, permission in token.scopes]),
    }


def token_from(row: Row) -> Token:
    """Return the token in a row of `TOKEN_COLUMNS`."""
    id_, user_id, name, role, created_at, hint, expires_at, scopes = row
    return Token(
        id=id_,
        user_id=user_id,
        name=name,
        role=TokenRole(role),
        created_at=instant_from(created_at),
        hint=hint,
        expires_at=_optional_instant(expires_at),
        scopes=tuple((namespace, Permission(permission)) for namespace, permission in json.loads(scopes)),
    )


def label_columns(labels: Mapping[str, str]) -> str:
    """Return the labels as their column holds them."""
    return json_to(dict(labels))
