"""From a name to what has to be fetched: indexes, manifests and configurations (OCI image specification 1.1)."""

import hashlib
import json
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from runstead.images.image import ImageConfig
from runstead.images.layers import Layer
from runstead.images.records import ImageRecord
from runstead.model.errors import ImageFailure

_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_RETIRED = "application/vnd.docker.distribution.manifest.v1"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_DIFF_ID = re.compile(r"sha256:([0-9a-f]{64})")
_MOST_LAYERS = 500
_DEEPEST = 3
# As the images' authors write it, for what this machine says of itself.
_ARCHITECTURES = {
    "x86_64": ("amd64", ""),
    "amd64": ("amd64", ""),
    "aarch64": ("arm64", "v8"),
    "arm64": ("arm64", "v8"),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i686": ("386", ""),
}

# Both return bytes that were checked against the digest, when they were asked for by one.
GetManifest = Callable[[str], tuple[bytes, str]]
GetBlob = Callable[[str, int | None], bytes]


@dataclass(frozen=True, slots=True)
class Resolved:
    """An image and what to fetch for it."""

    digest: str  # of what has the name: the index, where there is one
    record: ImageRecord
    layers: tuple[Layer, ...]


def resolve(wanted: str, manifest: GetManifest, blob: GetBlob) -> Resolved:
    """Find the image for this machine under a tag or a digest. Raises ImageFailure."""
    first: str | None = None
    for _ in range(_DEEPEST):
        body, media_type = manifest(wanted)
        found = _parse(body, "manifest")
        media_type = str(found.get("mediaType") or media_type)
        digest = wanted if _DIGEST.fullmatch(wanted) else f"sha256:{hashlib.sha256(body).hexdigest()}"
        first = first or digest
        if media_type not in _INDEXES and "manifests" not in found:
            return _image(first, digest, found, media_type, blob)
        wanted = _choose(_objects(found.get("manifests")))
    raise ImageFailure(f"the image is an index of indexes of indexes: {wanted}")


def check_digest(digest: str, body: bytes, what: str) -> None:
    """Raise ImageFailure if bytes do not have the hash that they should have."""
    algorithm = digest.partition(":")[0]
    found = f"{algorithm}:{hashlib.new(algorithm, body).hexdigest()}"
    if found != digest:
        raise ImageFailure(
            f"what came from the registry is damaged: the {what}'s hash is {found} and not {digest}; try again, and if "
            "it stays so tell those who run the registry, or a proxy before it",
            again=True,
        )


def this_platform() -> tuple[str, str]:
    """Return this machine's architecture and its variant, as images name them."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, (machine, ""))


def _choose(manifests: list[Mapping[str, Any]]) -> str:
    """Return the digest of the manifest for this machine."""
    architecture, variant = this_platform()
    there: list[str] = []
    fitting: list[tuple[int, str]] = []
    for one in manifests:
        on = _object(one.get("platform"))
        digest = str(one.get("digest") or "")
        if not _DIGEST.fullmatch(digest):
            continue
        name = "/".join(str(on[key]) for key in ("os", "architecture", "variant") if on.get(key))
        if name != "unknown/unknown":  # signatures and the like
            there.append(name or "one that names no platform")
        if not on and len(manifests) == 1:
            return digest
        if on.get("os") == "linux" and on.get("architecture") == architecture:
            rank = 0 if on.get("variant", "") in (variant, "") else 1
            if architecture != "arm" or rank == 0:
                fitting.append((rank, digest))
    if not fitting:
        has = ", ".join(dict.fromkeys(there)) or "nothing that can be run"
        raise ImageFailure(f"the image is not built for this machine, linux/{architecture}; it is for: {has}")
    return min(fitting, key=lambda one: one[0])[1]


def _image(name_digest: str, digest: str, found: Mapping[str, Any], media_type: str, blob: GetBlob) -> Resolved:
    if media_type.startswith(_RETIRED) or found.get("schemaVersion") == 1:
        raise ImageFailure(
            "the image is in a format that was retired in 2019 (manifest schema 1); push it anew with any current tool"
        )
    about = _object(found.get("config"))
    config_digest = str(about.get("digest") or "")
    if not _DIGEST.fullmatch(config_digest):
        raise ImageFailure("what has this name is no image: its manifest names no configuration")
    size = about.get("size")
    config_body = blob(config_digest, size if isinstance(size, int) else None)
    config = _parse(config_body, "configuration")
    layers = read_layers(_objects(found.get("layers")), config)
    return Resolved(name_digest, read_config(digest, config, layers), layers)


def read_layers(described: list[Mapping[str, Any]], config: Mapping[str, Any]) -> tuple[Layer, ...]:
    """Pair the layers of a manifest with the hashes of a configuration."""
    diff_ids = read_diff_ids(config)
    if len(diff_ids) != len(described):
        raise ImageFailure(
            f"the image contradicts itself: its manifest has {len(described)} layers and its configuration "
            f"{len(diff_ids)}"
        )
    layers: list[Layer] = []
    for one, diff_id in zip(described, diff_ids, strict=True):
        digest, size, media_type = str(one.get("digest") or ""), one.get("size"), str(one.get("mediaType") or "")
        if not _DIGEST.fullmatch(digest):
            raise ImageFailure(f"the image names a layer by what is no digest: {digest[:100]!r}")
        if "encrypted" in media_type or "foreign" in media_type:
            raise ImageFailure(f"the image has a layer of a kind that cannot be used here: {media_type}")
        layers.append(Layer(diff_id, digest, size if isinstance(size, int) and size >= 0 else None, media_type))
    return tuple(layers)


def read_diff_ids(config: Mapping[str, Any]) -> list[str]:
    """Return the hashes of a configuration's layers, each 64 digits."""
    named = _object(config.get("rootfs")).get("diff_ids")
    if not isinstance(named, list) or config.get("os", "linux") != "linux":
        raise ImageFailure(
            f"what has this name is no image of a Linux system: its configuration is for {config.get('os') or 'none'}"
        )
    found = [_DIFF_ID.fullmatch(str(one)) for one in cast("list[Any]", named)]
    if len(found) > _MOST_LAYERS:
        raise ImageFailure(f"the image has {len(found)} layers; at most {_MOST_LAYERS} can be stacked")
    if not all(found):
        raise ImageFailure("the image's configuration names a layer by what is no hash")
    return [one[1] for one in found if one is not None]


def read_config(digest: str, config: Mapping[str, Any], layers: tuple[Layer, ...]) -> ImageRecord:
    """Return what is kept of an image."""
    architecture = str(config.get("architecture") or "")
    own, _ = this_platform()
    if architecture not in ("", own):
        raise ImageFailure(f"the image is built for linux/{architecture}, and this machine is linux/{own}")
    run = _object(config.get("config"))
    labels = _object(run.get("Labels"))
    stop = run.get("StopSignal")
    return ImageRecord(
        digest=digest,
        layers=tuple(layer.diff_id for layer in layers),
        created=str(config["created"]) if config.get("created") else None,
        platform=f"linux/{architecture or own}",
        config=ImageConfig(
            environment=tuple(one for one in _texts(run.get("Env")) if "=" in one),
            working_dir=str(run.get("WorkingDir") or ""),
            user=str(run.get("User") or ""),
            entrypoint=_texts(run.get("Entrypoint")),
            command=_texts(run.get("Cmd")),
            labels={str(name): str(value) for name, value in labels.items()},
            stop_signal=str(stop) if stop else None,
        ),
    )


def _parse(body: bytes, what: str) -> Mapping[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise ImageFailure(f"what the registry gave as the image's {what} is none; is it a registry?")
    return cast("Mapping[str, Any]", value)


def _object(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def _objects(value: object) -> list[Mapping[str, Any]]:
    return [_object(one) for one in cast("list[Any]", value)] if isinstance(value, list) else []


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return ("/bin/sh", "-c", value)
    return tuple(str(one) for one in cast("list[Any]", value)) if isinstance(value, list) else ()
