"""Volumes: buckets and repositories as folders of a job."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from runstead.model.accounts import Permission


class VolumeKind(StrEnum):
    """What is mounted; the client's words (huggingface_hub 2.4.0, `Volume`)."""

    BUCKET = "bucket"
    MODEL = "model"
    DATASET = "dataset"
    SPACE = "space"


@dataclass(frozen=True, slots=True)
class Volume:
    """One mount that a job asks for, as it is stored with the job."""

    kind: VolumeKind
    source: str  # owner/name
    mount_path: str  # absolute, inside the job
    path: str = ""  # the folder of the source that is mounted as root; "" is all of it
    revision: str | None = None  # repositories only
    read_only: bool = False
    source_id: str | None = None  # of what had that name when access was decided; nothing else is ever mounted


@dataclass(frozen=True, slots=True)
class Mount:
    """A folder of the node that appears inside a job."""

    source: Path
    target: str  # absolute, inside the job
    read_only: bool


@dataclass(frozen=True, slots=True)
class MountRequest:
    """All that a provider needs to serve one volume of one attempt. It holds a token: never print or store it."""

    job_id: str
    attempt: int
    namespace: str  # of the job: who owns the files inside
    index: int  # of the volume in its job
    volume: Volume
    endpoint: str  # the Hub API that the node reads and writes through
    token: str  # reaches this volume's source and nothing else
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Flushed:
    """What a flush did, all its tries together."""

    files: int
    bytes: int
    notes: tuple[str, ...] = ()  # what was left out and why; for the log of the job


@dataclass(frozen=True, slots=True)
class MountCaller:
    """Who serves the volumes of one attempt: somebody who reaches these buckets and nothing else."""

    job_id: str
    attempt: int
    grants: Mapping[str, Permission]  # by the id of the bucket

    def may(self, permission: Permission, bucket_id: str) -> bool:
        """Say whether the volumes of the attempt include this bucket with that permission."""
        granted = self.grants.get(bucket_id)
        return granted is Permission.WRITE or (granted is not None and permission is Permission.READ)
