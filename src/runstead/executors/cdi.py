"""Devices as their vendors describe them for containers (Container Device Interface, CDI): what a job needs to use one.

A description is a JSON or YAML file that the vendor's tool writes once (`nvidia-ctk cdi generate`); no daemon and no
runtime of the vendor's is needed. It lists device nodes, files to show, variables to set, and hooks. Hooks are programs
of the vendor's that an engine would run with its own rights; we do what the known ones do, inside the job, and name
those that we do not know.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml

FOLDERS = (Path("/etc/cdi"), Path("/var/run/cdi"))
NVIDIA = "nvidia.com/gpu"
_SUFFIXES = (".json", ".yaml", ".yml")
# What `nvidia-ctk hook` does that a job can do without: old drivers' ways, and limits that we set ourselves.
_NEEDLESS = ("enable-cuda-compat", "disable-device-node-modification", "chmod")


@dataclass(frozen=True, slots=True)
class Edits:
    """What a device changes in a container."""

    devices: tuple[tuple[str, str], ...] = ()  # node on the machine, path in the container
    binds: tuple[tuple[str, str], ...] = ()  # file or directory of the machine, path in the container; read-only
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    links: tuple[tuple[str, str], ...] = ()  # target, path of the link
    library_folders: tuple[str, ...] = ()  # to be made known to the dynamic linker
    unknown_hooks: tuple[str, ...] = ()

    def __add__(self, other: "Edits") -> "Edits":
        return Edits(
            _once((*self.devices, *other.devices)),
            _once((*self.binds, *other.binds)),
            {**self.environment, **other.environment},
            _once((*self.links, *other.links)),
            _once((*self.library_folders, *other.library_folders)),
            _once((*self.unknown_hooks, *other.unknown_hooks)),
        )


_Value = TypeVar("_Value")


def _once(values: Iterable[_Value]) -> tuple[_Value, ...]:
    return tuple(dict.fromkeys(values))


class Devices:
    """All devices that are described on this machine, by their full names such as "nvidia.com/gpu=0"."""

    def __init__(self, folders: Sequence[Path] = FOLDERS) -> None:
        """Read the descriptions; one that cannot be read is named in `problems` and left out."""
        self.problems: list[str] = []
        self._devices: dict[str, Edits] = {}
        for folder in folders:
            for path in sorted(folder.glob("*")) if folder.is_dir() else []:
                if path.suffix in _SUFFIXES:
                    try:
                        self._read(path)
                    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                        self.problems.append(f"{path}: it is no description of devices: {error}")

    def names(self) -> list[str]:
        """Return the full names."""
        return list(self._devices)

    def find(self, kind: str, ids: Iterable[str]) -> Edits | None:
        """Return what is needed for some devices of a kind together; None when one of them is not described."""
        found = [self._devices.get(f"{kind}={one}") for one in ids]
        edits = Edits()
        for one in found:
            if one is None:
                return None
            edits += one
        return edits

    def _read(self, path: Path) -> None:
        described = _load(path)
        kind = str(described["kind"])
        common = _edits(described.get("containerEdits"))
        for device in described["devices"]:
            # Of two files that describe the same device the later one wins: folders go from static to generated.
            self._devices[f"{kind}={device['name']}"] = common + _edits(device.get("containerEdits"))


def _load(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    try:  # JSON is YAML, but there are faster readers for it
        return cast("dict[str, Any]", json.loads(text) if path.suffix == ".json" else yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _edits(described: Mapping[str, Any] | None) -> Edits:
    if not described:
        return Edits()
    edits = Edits(
        devices=tuple(
            (str(node.get("hostPath") or node["path"]), str(node["path"])) for node in _list(described, "deviceNodes")
        ),
        binds=tuple((str(one["hostPath"]), str(one["containerPath"])) for one in _list(described, "mounts")),
        environment=dict(str(pair).split("=", 1) for pair in _list(described, "env") if "=" in str(pair)),
    )
    for hook in _list(described, "hooks"):
        edits += _hook(str(hook["path"]), [str(word) for word in _list(hook, "args")])
    for source, target in (*edits.devices, *edits.binds):
        if not (source.startswith("/") and target.startswith("/")):
            raise ValueError(f"a path is not absolute: {source} {target}")
    return edits


def _list(described: Mapping[str, Any], name: str) -> list[Any]:
    return list(described.get(name) or [])


def _hook(path: str, words: list[str]) -> Edits:
    """Return what a hook would have done."""
    command = next((word for word in words[1:] if not word.startswith("-") and word != "hook"), "")
    if command == "create-symlinks":
        pairs = [value.split("::", 1) for value in _values(words, "--link")]
        return Edits(links=tuple((target, link) for target, link in pairs if link.startswith("/")))
    if command == "update-ldcache":
        return Edits(library_folders=tuple(_values(words, "--folder")))
    if command in _NEEDLESS:
        return Edits()
    return Edits(unknown_hooks=(f"{path} {command}".strip(),))


def _values(words: list[str], name: str) -> list[str]:
    """Return the values of an option that may repeat, `--name value` or `--name=value`."""
    found = [word.partition("=")[2] for word in words if word.startswith(f"{name}=")]
    return found + [value for word, value in pairwise(words) if word == name]
