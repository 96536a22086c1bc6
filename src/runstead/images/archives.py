"""Images in files: what `docker save` and `podman save` write, and OCI layouts, as a tar or as a directory."""

import contextlib
import hashlib
import json
import os
import posixpath
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from runstead.images import archive as tar
from runstead.images.compression import decompressed
from runstead.images.layers import Layer
from runstead.images.manifests import Resolved, check_digest, read_config, read_diff_ids, resolve
from runstead.model.errors import ImageFailure

_PIECE = 256 << 10
_LARGEST_DOCUMENT = 16 << 20
_NAME_KEYS = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
_MOST_LINKS = 8


@dataclass(frozen=True, slots=True)
class ArchivedImage:
    """An image in a file, with the names it has there."""

    resolved: Resolved
    names: tuple[str, ...]


class _Files:
    """The files of a tar, or of a directory."""

    def __init__(self, path: Path, scratch: Path) -> None:
        self._folder: Path | None = None
        self._members: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        self._fd = -1
        try:
            if path.is_dir():
                self._folder = path
                return
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ImageFailure(f"the archive cannot be read ({error.strerror}): {path}") from error
        try:
            if os.pread(self._fd, 2, 0) == b"\x1f\x8b" or os.pread(self._fd, 4, 0) == b"\x28\xb5\x2f\xfd":
                self._fd = self._plain(scratch)
            self._index()
        except tar.Damaged as error:
            raise ImageFailure(f"this is no archive of images: {error}: {path}") from error

    def has(self, name: str) -> bool:
        with contextlib.suppress(ImageFailure):
            self.size(name)
            return True
        return False

    def size(self, name: str) -> int:
        if self._folder is not None:
            return self._inside(name).stat().st_size
        return self._member(name)[1]

    def read(self, name: str) -> bytes:
        if self.size(name) > _LARGEST_DOCUMENT:
            raise ImageFailure(f"a document of the archive is larger than {_LARGEST_DOCUMENT:,} bytes: {name}")
        return b"".join(self.pieces(name))

    def pieces(self, name: str) -> Iterator[bytes]:
        if self._folder is not None:
            with self._inside(name).open("rb") as file:
                while piece := file.read(_PIECE):
                    yield piece
            return
        offset, left = self._member(name)
        while left:
            piece = os.pread(self._fd, min(_PIECE, left), offset)
            if not piece:
                raise ImageFailure(f"the archive breaks off inside of {name}")
            offset += len(piece)
            left -= len(piece)
            yield piece

    def _inside(self, name: str) -> Path:
        assert self._folder is not None
        path = self._folder / name
        if not path.is_file() or not path.resolve().is_relative_to(self._folder.resolve()):
            raise ImageFailure(f"the archive has no file {name!r}")
        return path

    def _member(self, name: str) -> tuple[int, int]:
        for _ in range(_MOST_LINKS):
            if name not in self._links:
                break
            name = posixpath.normpath(posixpath.join(posixpath.dirname(name), self._links[name]))
        if name not in self._members:
            raise ImageFailure(f"the archive has no file {name!r}")
        return self._members[name]

    def _plain(self, scratch: Path) -> int:
        """Decompress the archive into a file without a name, which goes with this process."""
        with tempfile.TemporaryFile(dir=scratch) as file:
            for piece in decompressed(_whole(self._fd)):
                file.write(piece)
            file.flush()
            os.close(self._fd)
            return os.dup(file.fileno())

    def _index(self) -> None:
        reader = tar.TarReader(_Reading(_whole(self._fd)))
        while (entry := reader.next()) is not None:
            name = posixpath.normpath(os.fsdecode(entry.name))
            if entry.kind == tar.REGULAR:
                self._members[name] = (reader.offset, entry.size)
            elif entry.kind == tar.SYMBOLIC_LINK:
                self._links[name] = os.fsdecode(entry.link)
            elif entry.kind == tar.HARD_LINK:
                self._members[name] = self._members.get(posixpath.normpath(os.fsdecode(entry.link)), (0, 0))


class _Reading:
    """Hands out pieces one at a time, then nothing."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def __call__(self) -> bytes:
        return next(self._pieces, b"")


class ArchiveSource:
    """The images of one archive. `scratch` has room for it, should it be compressed."""

    def __init__(self, path: Path, scratch: Path) -> None:
        self._files = _Files(path, scratch)
        self._names: dict[str, str] = {}  # diff id to the file that has the layer

    def images(self) -> list[ArchivedImage]:
        """Return all images for this machine. Raises ImageFailure when there is none, or one is damaged."""
        if self._files.has("index.json"):
            return self._of_layout()
        if self._files.has("manifest.json"):
            return self._of_docker()
        raise ImageFailure(
            "this is no archive of images: it has neither an index.json (OCI layout) nor a manifest.json (docker save)"
        )

    def pieces(self, layer: Layer) -> Iterator[bytes]:
        """Yield a layer's bytes as they are in the archive."""
        return self._files.pieces(self._names[layer.diff_id])

    def _of_layout(self) -> list[ArchivedImage]:
        found: list[ArchivedImage] = []
        tags = self._tags_of_docker()
        for one in _list(_document(self._files.read("index.json")).get("manifests")):
            notes = _mapping(one.get("annotations"))
            resolved = resolve(str(one.get("digest") or ""), self._manifest, self._blob)
            for layer in resolved.layers:
                assert layer.digest is not None
                self._names[layer.diff_id] = _blob_name(layer.digest)
            # Only the first is a full name; the other may be no more than a tag.
            names = [str(notes[key]) for key in _NAME_KEYS if ":" in str(notes.get(key, ""))][:1]
            found.append(ArchivedImage(resolved, tuple(names or tags)))
        if not found:
            raise ImageFailure("the archive has no image")
        if len(found) > 1 and tags:
            found = [ArchivedImage(one.resolved, one.names if one.names != tuple(tags) else ()) for one in found]
        return found

    def _tags_of_docker(self) -> list[str]:
        """Return the names that Docker wrote beside an OCI layout."""
        if not self._files.has("manifest.json"):
            return []
        return [str(tag) for one in self._docker_manifest() for tag in one.get("RepoTags") or ()]

    def _of_docker(self) -> list[ArchivedImage]:
        return [self._docker_image(one) for one in self._docker_manifest()]

    def _docker_manifest(self) -> list[Mapping[str, Any]]:
        try:
            found = _list(json.loads(self._files.read("manifest.json")))
        except ValueError:
            found = []
        if not found:
            raise ImageFailure("the archive has no image: its manifest.json cannot be read")
        return found

    def _docker_image(self, one: Mapping[str, Any]) -> ArchivedImage:
        body = self._files.read(str(one.get("Config")))
        config = _document(body)
        names = [posixpath.normpath(str(name)) for name in one.get("Layers") or ()]
        diff_ids = read_diff_ids(config)
        if len(names) != len(diff_ids):
            raise ImageFailure("the archive contradicts itself: an image has more layers than its configuration")
        self._names.update(zip(diff_ids, names, strict=True))
        layers = tuple(
            Layer(diff_id, None, self._files.size(name)) for diff_id, name in zip(diff_ids, names, strict=True)
        )
        # What Docker calls the image's id; a manifest, which would have another hash, is made when it is pushed.
        digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
        tags = tuple(str(tag) for tag in one.get("RepoTags") or ())
        return ArchivedImage(Resolved(digest, read_config(digest, config, layers), layers), tags)

    def _manifest(self, wanted: str) -> tuple[bytes, str]:
        body = self._files.read(_blob_name(wanted))
        check_digest(wanted, body, "manifest")
        return body, ""

    def _blob(self, digest: str, size: int | None) -> bytes:
        del size
        body = self._files.read(_blob_name(digest))
        check_digest(digest, body, "configuration")
        return body


def _blob_name(digest: str) -> str:
    algorithm, _, value = digest.partition(":")
    if not algorithm.isalnum() or not value.isalnum():
        raise ImageFailure(f"the archive names a part of the image by what is no digest: {digest[:100]!r}")
    return f"blobs/{algorithm}/{value}"


def _whole(fd: int) -> Iterator[bytes]:
    offset = 0
    while piece := os.pread(fd, _PIECE, offset):
        offset += len(piece)
        yield piece


def _document(body: bytes) -> Mapping[str, Any]:
    try:
        return _mapping(json.loads(body))
    except ValueError:
        raise ImageFailure("a document of the archive is no JSON") from None


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def _list(value: object) -> list[Mapping[str, Any]]:
    return [_mapping(one) for one in cast("list[Any]", value)] if isinstance(value, list) else []
