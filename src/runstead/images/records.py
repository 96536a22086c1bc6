"""What is written down beside unpacked layers: small JSON files, each replaced as a whole."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runstead.images.image import ImageConfig

VERSION = 1


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """An unpacked layer. Until its files are known to be on the disk, it counts only as long as the machine runs."""

    diff_id: str  # the hash of its uncompressed archive, 64 digits
    entries: int
    bytes: int
    boot: str | None  # the boot in which it was unpacked; None once it is on the disk


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image of which all layers are here."""

    digest: str
    config: ImageConfig
    layers: tuple[str, ...]  # diff ids, lowest first
    created: str | None
    platform: str


@dataclass(frozen=True, slots=True)
class ReferenceRecord:
    """What a name means."""

    reference: str
    image: str  # digest of the image's manifest
    digest: str  # what the registry has under the name; of an index, where there is one
    checked_at: float  # seconds since the epoch


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a file as a whole. After a power cut it may be empty, which no reader takes for a record."""
    fd, name = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(json.dumps({"version": VERSION, **value}))  # ten times as fast as json.dump
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any] | None:
    """Return what `write_json` wrote; None when there is none of this version."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) and value.get("version") == VERSION else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]


def file_name(text: str) -> str:
    """Return a name for a file about something that may have any name."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest_name(digest: str) -> str:
    """Return the name of the file about an image."""
    return digest.replace(":", "-")


def layer_to(record: LayerRecord) -> dict[str, Any]:
    """Return the stored form."""
    return {"diff_id": record.diff_id, "entries": record.entries, "bytes": record.bytes, "boot": record.boot}


def layer_from(path: Path) -> LayerRecord | None:
    """Read a layer's record."""
    value = read_json(path)
    return None if value is None else LayerRecord(value["diff_id"], value["entries"], value["bytes"], value["boot"])


def image_to(record: ImageRecord) -> dict[str, Any]:
    """Return the stored form."""
    config = record.config
    return {
        "digest": record.digest,
        "layers": list(record.layers),
        "created": record.created,
        "platform": record.platform,
        "config": {
            "environment": list(config.environment),
            "working_dir": config.working_dir,
            "user": config.user,
            "entrypoint": list(config.entrypoint),
            "command": list(config.command),
            "labels": dict(config.labels),
            "stop_signal": config.stop_signal,
        },
    }


def image_from(path: Path) -> ImageRecord | None:
    """Read an image's record."""
    value = read_json(path)
    if value is None:
        return None
    config = value["config"]
    return ImageRecord(
        digest=value["digest"],
        layers=tuple(value["layers"]),
        created=value["created"],
        platform=value["platform"],
        config=ImageConfig(
            environment=tuple(config["environment"]),
            working_dir=config["working_dir"],
            user=config["user"],
            entrypoint=tuple(config["entrypoint"]),
            command=tuple(config["command"]),
            labels=config["labels"],
            stop_signal=config["stop_signal"],
        ),
    )


def reference_to(record: ReferenceRecord) -> dict[str, Any]:
    """Return the stored form."""
    return {
        "reference": record.reference,
        "image": record.image,
        "digest": record.digest,
        "checked_at": record.checked_at,
    }


def reference_from(path: Path) -> ReferenceRecord | None:
    """Read a name's record."""
    value = read_json(path)
    return (
        None
        if value is None
        else ReferenceRecord(value["reference"], value["image"], value["digest"], value["checked_at"])
    )
