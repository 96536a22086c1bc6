"""An image as it lies on this machine: what its authors say of it, and its layers as directories."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What an image says about how to run it (OCI image specification, `config`)."""

    environment: tuple[str, ...] = ()  # NAME=value
    working_dir: str = ""  # empty: the root
    user: str = ""  # name or number, with ":group" if wanted; empty: root
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    stop_signal: str | None = None


@dataclass(frozen=True, slots=True)
class Image:
    """An image that can be run from.

    Layers are directories, lowest first, each once; their files have the owners that the image says, whiteouts and
    opaque directories are as overlayfs wants them. Nobody may write to them.
    """

    reference: str  # in full, as in docker.io/library/python:3.12
    digest: str  # of its manifest
    config: ImageConfig
    layers: tuple[Path, ...]
