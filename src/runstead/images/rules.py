"""What the program that brings images must know of the settings: plain values, so that it starts without pydantic."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runstead.kit.settings import ImageSettings


@dataclass(frozen=True, slots=True)
class Rules:
    """Settings of images; see `runstead.kit.settings.ImageSettings`."""

    mirrors: tuple[str, ...]
    insecure: tuple[str, ...]
    registries: tuple[str, ...]
    auth_file: Path | None
    max_image_bytes: int
    max_image_files: int
    layers_at_once: int
    stall_seconds: float


def rules_of(settings: "ImageSettings") -> Rules:
    """Take what is needed of the settings."""
    return Rules(
        mirrors=settings.mirrors,
        insecure=settings.insecure,
        registries=settings.registries,
        auth_file=settings.auth_file,
        max_image_bytes=settings.max_image_bytes,
        max_image_files=settings.max_image_files,
        layers_at_once=settings.layers_at_once,
        stall_seconds=settings.stall_seconds,
    )


def rules_to(rules: Rules) -> dict[str, Any]:
    """Return the form that JSON can hold."""
    return asdict(rules) | {"auth_file": None if rules.auth_file is None else str(rules.auth_file)}


def rules_from(value: Mapping[str, Any]) -> Rules:
    """Read what `rules_to` returned."""
    lists = {name: tuple(value[name]) for name in ("mirrors", "insecure", "registries")}
    path = value["auth_file"]
    given: dict[str, Any] = {**value, **lists, "auth_file": None if path is None else Path(path)}
    return Rules(**given)
