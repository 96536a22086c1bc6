"""Volumes: buckets and repositories as folders of a job."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path


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
    """What a flush did."""

    files: int
    bytes: int
